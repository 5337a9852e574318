"""Train on several ranks, from one call in one process: all on this machine, or its share of those on several nodes.

The ranks are started, watched and ended by torch's elastic agent, which torchrun is made of. It is called here rather
than as a program, as torchrun reports whatever went wrong as its own exit code 1.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from progrpo.config import Arm, TrainConfig
from progrpo.errors import ConfigError
from progrpo.manifest import Manifest, read_manifest, write_atomic
from progrpo.metrics import MetricSink, Progress, ProgressSink
from progrpo.training.job import Job, error_of_ranks

logger = logging.getLogger(__name__)

SHUTDOWN_S = 600
"""How long ranks that were told to stop may take to finish their step and save their state; then they are killed. In a
pod its grace period ends first, unless it is longer."""
JOIN_S = 1800
"""How long a node waits for the others: one may have to pull an image of 12 GB that another has."""


@dataclass(frozen=True)
class Nodes:
    """Machines that train together, seen from one of them."""

    num_nodes: int
    node_rank: int
    num_processes: int
    """Ranks on each node."""
    address: str
    """HOST:PORT of the first node, where all meet."""
    run_id: str
    """Equal on all nodes."""

    @classmethod
    def of_environment(cls, run_id: str, environment: Mapping[str, str] | None = None) -> Nodes:
        """Read torchrun's ``PET_*`` variables, which Kubeflow Trainer sets in each pod.

        Raises:
            ConfigError: one of them is missing, or not a number where one is needed.
        """
        values = os.environ if environment is None else environment
        names = ("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT")
        if missing := [name for name in names if not values.get(name)]:
            raise ConfigError(
                f"{', '.join(missing)} is not set: this is no pod of a TrainJob with a torch runtime. The training "
                f"runtime needs spec.mlPolicy.torch, or set the variables as for torchrun."
            )
        nodes, rank, processes, host, port = (values[name] for name in names)
        if not (nodes.isdecimal() and rank.isdecimal() and processes.isdecimal() and port.isdecimal()):
            given = ", ".join(f"{name}={values[name]}" for name in names)
            raise ConfigError(f"{given}: all but the address must be numbers. Give spec.trainer.numProcPerNode.")
        return cls(int(nodes), int(rank), int(processes), f"{host}:{port}", run_id)

    @property
    def is_first(self) -> bool:
        """Whether this is the node that writes."""
        return self.node_rank == 0


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
    nodes: Nodes | None = None,
) -> Manifest:
    """Train on ``config.distributed.num_processes`` ranks; otherwise as :func:`progrpo.training.train.train`.

    ``sinks`` and ``progress`` are called from a thread, one step after the other, on the first node. On other nodes
    nothing is written, and the manifest returned is empty.

    Args, besides those of ``train``:
        nodes: those that train together, each of which makes this call; absent: this machine alone.

    Raises:
        ConfigError: the nodes have another number of ranks together.
        ProGRPOError: what the rank that failed raised, with its type.
        RuntimeError: a rank failed otherwise, with its traceback.
        SystemExit: told to stop by SIGTERM, status 143, or SIGINT, 130, after the ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_ranks(config, nodes)
    with TemporaryDirectory(prefix="progrpo-ranks-") as scratch:
        metrics = Path(scratch) / "metrics"
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
            **_meeting(config, nodes),
            max_restarts=0,  # a resume point is taken up by the next attempt at the step, on a whole node
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=SHUTDOWN_S,
        )
        told = [*sinks, *([ProgressSink(progress, config.steps)] if progress is not None else [])]
        with _signals_restored(), _relayed(metrics, told):
            try:
                elastic_launch(agent, sys.executable)("-m", "progrpo.training", "--job", f"{scratch}/job.json")
            except SignalException as error:
                raise SystemExit(128 + error.sigval) from None
            except ChildFailedError as error:
                raise error_of_ranks(error.failures) from None
    if nodes is not None and not nodes.is_first:
        return Manifest(kind="training")
    return read_manifest(output, "training", verify=False)


def _check_ranks(config: TrainConfig, nodes: Nodes | None) -> None:
    """Refuse before the ranks wait for each other."""
    wanted = config.distributed.num_processes
    if nodes is not None and nodes.num_nodes * nodes.num_processes != wanted:
        raise ConfigError(
            f"train.distributed.num_processes is {wanted}, but {nodes.num_nodes} nodes with {nodes.num_processes} "
            f"processes each were started. Give nodes x processes of a node."
        )


def _meeting(config: TrainConfig, nodes: Nodes | None) -> dict[str, Any]:
    """Return who trains and where they meet, as ``LaunchConfig`` takes it."""
    if nodes is None:
        return {
            "min_nodes": 1,
            "max_nodes": 1,
            "nproc_per_node": config.distributed.num_processes,
            "run_id": uuid.uuid4().hex,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "localhost:0",
        }
    return {
        "min_nodes": nodes.num_nodes,
        "max_nodes": nodes.num_nodes,
        "nproc_per_node": nodes.num_processes,
        "run_id": nodes.run_id,
        "rdzv_backend": "static",  # torchrun's default: node ranks are given, so the first node is the one that uploads
        "rdzv_endpoint": nodes.address,
        "rdzv_configs": {"rank": nodes.node_rank, "timeout": JOIN_S},
    }


@contextmanager
def _relayed(path: Path, sinks: Sequence[MetricSink]) -> Iterator[None]:
    """Make a pipe at ``path`` and pass on each line of metrics that is written into it."""
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # as a reader and a writer: opening it as one alone waits for the other

    def follow() -> None:
        with path.open("rb") as lines:
            for line in iter(lines.readline, b"\n"):
                try:
                    metrics = json.loads(line)
                    step = int(metrics.pop("step"))
                    for sink in sinks:
                        sink.log(step, metrics)
                except Exception as error:  # a line that a kill cut off; a full disk. Ranks would wait for a reader
                    logger.warning("metrics were not passed on: %r: %r", error, line[:100])

    thread = threading.Thread(target=follow, name="metrics of the ranks")
    thread.start()
    try:
        yield
    finally:
        os.write(pipe, b"\n\n")  # ends a line that was cut off, then the reading
        thread.join()
        os.close(pipe)


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
