"""What the launcher tells the workers, and what a worker that failed tells the launcher."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, ValidationError

from progrpo.config import Config, TrainConfig
from progrpo.errors import ConfigError, ProGRPOError, TrainingError, error_named
from progrpo_components.steps import Run, Tracking

NODE = "node"
"""Name of the trainer's job and container in every training runtime; Trainer's webhook knows them by it."""
MAX_TERMINATION_BYTES = 4000
"""Kubernetes keeps 4096 bytes of /dev/termination-log."""


class WorkerJob(Config):
    """A training run as the pods of its TrainJob know it. Holds no secret: it is an argument in the TrainJob."""

    run: Run
    train: TrainConfig
    dataset: str = Field(description="URI of the dataset artifact")
    checkpoint: str = Field(description="URI of the checkpoint artifact to start from")
    output: str = Field(description="URI that the training run is written to")
    run_id: str = Field(min_length=1, description="of the pipeline run")
    tracking: Tracking | None = None

    @property
    def name(self) -> str:
        """Name of the TrainJob: the same at each attempt, so that a retried step finds its own again."""
        identity = json.dumps([self.run_id, self.run.arm.name, self.run.seed])
        return f"progrpo-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def as_argument(self) -> str:
        """Return it as JSON that Kubernetes leaves alone: it would expand ``$(NAME)`` in an argument."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True).replace("$", "\\u0024")


def read_worker_job(text: str) -> WorkerJob:
    """Read what :meth:`WorkerJob.as_argument` wrote.

    Raises:
        ConfigError: it is something else, as by another version of progrpo.
    """
    try:
        return WorkerJob.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(the whole)"
        raise ConfigError(
            f"--job is not a worker's job: {where}: {first['msg']} ({error.error_count()} in all). The launcher and "
            f"the training image must have the same version of progrpo."
        ) from None


def termination_message(error: BaseException) -> str:
    """Return what a worker leaves behind for the launcher: type and message, cut to what Kubernetes keeps."""
    message = str(error)
    while True:
        text = json.dumps({"error": type(error).__name__, "message": message})
        if len(text.encode()) <= MAX_TERMINATION_BYTES:
            return text
        message = message[: int(len(message) * 0.9)]


def error_of_termination(text: str) -> ProGRPOError | None:
    """Return the error a worker left behind; None if the text is not one.

    An error for the user comes back with its type, any other as a TrainingError.
    """
    try:
        told: Any = json.loads(text)
        name, message = str(told["error"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return None
    return error_named(name, message) or TrainingError(f"{name}: {message}")
