"""One rank of a training run: ``torchrun --nproc-per-node N -m progrpo.training --job job.json``.

Exit codes: 0; 2 for an error the user can mend; 1 for our bug; 143 or 130 when told to stop. torchrun itself turns all
but 0 into 1, but its error file (``TORCHELASTIC_ERROR_FILE``) carries the error of the rank that failed first.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from progrpo.errors import ProGRPOError
from progrpo.metrics import JsonlSink
from progrpo.training.job import Job, read_job

logger = logging.getLogger("progrpo.training")

PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Run one rank and return its exit code."""
    parser = argparse.ArgumentParser(prog="torchrun -m progrpo.training", description=__doc__.splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, help="JSON file of a progrpo.training.job.Job")
    path = parser.parse_args(arguments).job
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR,
        format=f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s",
    )
    _die_with_parent()
    try:
        job = read_job(path)
        # Left open, accelerate sets the number of threads by its own rule, after we have set it.
        os.environ.setdefault("OMP_NUM_THREADS", str(job.train.num_threads))
        run(job, is_first=rank == 0)
    except ProGRPOError as error:
        _record(error)
        logger.error("%s: %s", type(error).__name__, error)
        return 2
    except Exception as error:
        from progrpo.training.distributed import lost_a_rank

        if lost_a_rank(error):
            # Its own end is the cause; recorded here, this would look like one.
            logger.error("another rank went away: %s", str(error).splitlines()[0])
            return 1
        _record(error)
        raise
    finally:
        gc.freeze()  # the collector would go through all of TRL's modules once more as the process ends: 1.3 s
    return 0


def run(job: Job, *, is_first: bool) -> None:
    """Train, and leave the other ranks in good order whatever happens.

    Raises:
        ProGRPOError: whatever :func:`progrpo.training.train.train` raises, on the rank that met it.
    """
    from progrpo.training.distributed import check_world_size, leave_process_group
    from progrpo.training.train import train

    check_world_size(job.train)
    sinks = [JsonlSink(job.metrics)] if is_first and job.metrics is not None else []
    try:
        train(
            job.arm,
            job.seed,
            job.train,
            dataset=job.dataset,
            checkpoint=job.checkpoint,
            output=job.output,
            run_id=job.run_id,
            sinks=sinks,
        )
    finally:
        for sink in sinks:
            sink.close()
        leave_process_group()


def _record(error: Exception) -> None:
    """Write the error where torchrun, or whoever else started the rank, looks for it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _die_with_parent() -> None:
    """Do not outlive a launcher that was killed: torch gives each rank a session of its own, nothing else ends it."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
