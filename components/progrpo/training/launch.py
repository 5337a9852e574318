"""Train on several ranks of this machine, from one call in one process.

The ranks are started, watched and ended by torch's elastic agent, which torchrun is made of. It is called here rather
than as a program, as torchrun reports whatever went wrong as its own exit code 1.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from progrpo.config import Arm, TrainConfig
from progrpo.manifest import Manifest, read_manifest, write_atomic
from progrpo.metrics import MetricSink, Progress
from progrpo.training.job import Job, error_of_ranks

SHUTDOWN_S = 600
"""How long ranks that were told to stop may take to finish their step and save their state; then they are killed. In a
pod its grace period ends first, unless it is longer."""
POLL_S = 0.2


def launch(
    arm: Arm,
    seed: int,
    config: TrainConfig,
    *,
    dataset: Path,
    checkpoint: Path,
    output: Path,
    run_id: str = "run",
    sinks: Sequence[MetricSink] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Train on ``config.distributed.num_processes`` ranks; otherwise as :func:`progrpo.training.train.train`.

    ``sinks`` and ``progress`` are called from a thread, one step after the other.

    Raises:
        ProGRPOError: what the rank that failed raised, with its type.
        RuntimeError: a rank failed otherwise, with its traceback.
        SystemExit: told to stop by SIGTERM, status 143, or SIGINT, 130, after the ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory(prefix="progrpo-ranks-") as scratch:
        metrics = Path(scratch) / "metrics.jsonl"
        job = Job(
            arm=arm,
            seed=seed,
            train=config,
            dataset=dataset.resolve(),
            checkpoint=checkpoint.resolve(),
            output=output.resolve(),
            run_id=run_id,
            metrics=metrics,
        )
        write_atomic(Path(scratch) / "job.json", job.model_dump_json(indent=2))
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.distributed.num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,  # a resume point is taken up by the next attempt at the step, on a whole node
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=SHUTDOWN_S,
        )
        with _signals_restored(), _relayed(metrics, config.steps, sinks, progress):
            try:
                elastic_launch(agent, sys.executable)("-m", "progrpo.training", "--job", f"{scratch}/job.json")
            except SignalException as error:
                raise SystemExit(128 + error.sigval) from None
            except ChildFailedError as error:
                raise error_of_ranks(error.failures) from None
    return read_manifest(output, "training", verify=False)


@contextmanager
def _relayed(path: Path, num_steps: int, sinks: Sequence[MetricSink], progress: Progress | None) -> Iterator[None]:
    """Pass on each line that is appended to a file of metrics."""
    ended = threading.Event()

    def follow() -> None:
        offset, is_last_look = 0, False
        while not is_last_look:
            is_last_look = ended.wait(POLL_S)
            offset = _pass_on(path, offset, num_steps, sinks, progress)

    thread = threading.Thread(target=follow, name="metrics of the ranks")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pass_on(path: Path, offset: int, num_steps: int, sinks: Sequence[MetricSink], progress: Progress | None) -> int:
    """Pass on the whole lines behind ``offset``, in bytes; return where they end."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            metrics = json.loads(line)
            step = int(metrics.pop("step"))
            for sink in sinks:
                sink.log(step, metrics)
            if progress is not None and step:
                shown = {"reward": metrics.get("train/reward", 0.0), "entropy": metrics.get("train/entropy", 0.0)}
                progress.update(step, num_steps, **shown)
    return offset


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Put back the signal handlers that the agent replaces for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
