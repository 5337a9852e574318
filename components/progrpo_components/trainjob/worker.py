"""What runs in every pod of a TrainJob: ``python -m progrpo_components.trainjob.worker --job JSON``.

Takes the inputs by their URIs, trains with this node's share of the ranks, and on the first node uploads the training
run. A pod that starts after the run was finished ends at once.

Exit codes: 0; 2 for an error the user can mend, which no restart does; 1 for our bug, or another node that went away;
143 or 130 when told to stop. The error is also left in ``/dev/termination-log``, where the launcher reads it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from progrpo.errors import ProGRPOError, StorageError
from progrpo.storage import local_path
from progrpo_components import steps
from progrpo_components.trainjob.artifacts import fetch, publish, published
from progrpo_components.trainjob.job import WorkerJob, read_worker_job, termination_message

logger = logging.getLogger("progrpo.trainjob")

TERMINATION_LOG = Path("/dev/termination-log")
USER_ERROR, FAILED = 2, 1


def main(arguments: list[str] | None = None, *, termination_log: Path = TERMINATION_LOG) -> int:
    """Run one node and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m progrpo_components.trainjob.worker", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--job", required=True, metavar="JSON", help="of a progrpo_components.trainjob.job.WorkerJob")
    text = parser.parse_args(arguments).job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("botocore", "boto3", "s3transfer", "urllib3"):  # boto3 says where it found credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        work(read_worker_job(text))
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else FAILED
    except StorageError as error:
        _leave(error, termination_log)
        logger.error("%s: %s", type(error).__name__, error)
        return FAILED  # a store that was away may be back when the pods are restarted
    except ProGRPOError as error:
        _leave(error, termination_log)
        logger.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    except Exception as error:
        _leave(error, termination_log)
        logger.exception("training failed")
        return FAILED
    return 0


def work(job: WorkerJob) -> None:
    """Train as one of several nodes.

    Raises:
        ProGRPOError: whatever the step raises, or an input or output that cannot be used.
        SystemExit: told to stop.
    """
    from progrpo.training.launch import Nodes

    nodes = Nodes.of_environment(job.name)
    if published(job.output, "training") is not None:
        logger.info("%s is finished already; nothing is left to do", job.output)
        return
    scratch = Path(tempfile.mkdtemp(prefix="progrpo-node-"))
    try:
        output = _output(job, scratch) if nodes.is_first else scratch / "training"
        steps.train(
            job.run.model_dump(mode="json"),
            job.train.model_dump(mode="json"),
            dataset=fetch(job.dataset, "dataset", scratch / "dataset"),
            checkpoint=fetch(job.checkpoint, "checkpoint", scratch / "checkpoint"),
            output=output,
            tracking=job.tracking if nodes.is_first else None,
            nodes=nodes,
        )
        if nodes.is_first and local_path(job.output) is None:
            # A pod that is told to stop has its grace period to finish this, which days of training went into.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            publish(output, job.output)
            logger.info("the training run is at %s", job.output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _output(job: WorkerJob, scratch: Path) -> Path:
    """Return where to train: on a volume at the output itself, where what an earlier attempt left is removed."""
    path = local_path(job.output)
    if path is None:
        return scratch / "training"
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise StorageError(f"{path} holds an unfinished training run and cannot be removed: {error}.") from None
    return path


def _leave(error: BaseException, path: Path) -> None:
    with suppress(OSError):  # outside a pod there is no such file
        path.write_text(termination_message(error), encoding="utf-8")


def _exit(code: int) -> NoReturn:
    """End the process whatever threads or children a library left: a pod that lingers holds its GPUs."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # The first process of a container ignores SIGTERM unless it says otherwise.
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    _exit(main())
