"""A training run as a file: all that a rank needs to know, and how a rank tells what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from progrpo.config import MAX_SEED, Arm, Config, TrainConfig
from progrpo.errors import ConfigError, TrainingError, error_named

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


class Job(Config):
    """The arguments of :func:`progrpo.training.train.train`, as JSON."""

    arm: Arm
    seed: int = Field(ge=0, le=MAX_SEED)
    train: TrainConfig
    dataset: Path
    checkpoint: Path
    output: Path
    run_id: str = Field("run", min_length=1, description="of the pipeline run")
    metrics: Path | None = Field(None, description="file for what the first rank reports of each step; absent: none")


def read_job(path: Path) -> Job:
    """Read a job file.

    Raises:
        ConfigError: it cannot be read or is not a job.
    """
    try:
        return Job.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the job file {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(the whole)"
        raise ConfigError(f"{path} is not a job: {where}: {first['msg']} ({error.error_count()} in all).") from None


def error_of_ranks(failures: Mapping[int, ProcessFailure]) -> BaseException:
    """Return what to raise for ranks that failed: the cause, not what it did to the other ranks.

    Args:
        failures: by rank, as torch's elastic agent reports them.

    Returns:
        The error a rank ended with, if it is one for the user, with its type; else SystemExit if they were told to
        stop; else what is known of a crash.
    """
    recorded = {rank: told for rank, failure in failures.items() if (told := _recorded(failure))}
    for told in recorded.values():
        name, _, message = told["message"].partition(": ")
        if error := error_named(name, message):
            return error
    for rank, told in recorded.items():
        return RuntimeError(f"rank {rank} failed.\n{told['extraInfo']['py_callstack']}")
    if killed := sorted(rank for rank, failure in failures.items() if failure.exitcode == -9):
        return TrainingError(
            f"rank {_listed(killed)} was killed (SIGKILL), most likely for want of memory. Give the step more memory, "
            f"or lower train.micro_batch_size."
        )
    codes = {failure.exitcode for failure in failures.values()}
    for code in (143, 130):
        if code in codes:
            return SystemExit(code)
    return RuntimeError(f"rank {_listed(sorted(failures))} ended with exit code {', '.join(map(str, sorted(codes)))}.")


def _recorded(failure: ProcessFailure) -> dict[str, Any]:
    """Return what the rank wrote down of its error; nothing if it did not get to that."""
    message = failure.error_file_data.get("message")
    return message if isinstance(message, dict) else {}


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, ranks))
