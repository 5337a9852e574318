"""Which MLflow run a step logs into: all that is needed to find or make it, now or on another day.

1. ``MLFLOW_RUN_ID``: Kubeflow's MLflow plugin made a run for this task, and the step attaches to it.
2. Else there is one run for the pipeline run, and a flat *summary run* for each arm and seed. The first is the
   plugin's, where ``KFP_MLFLOW_CONFIG`` names it and our server has it, and the others are in its experiment; without
   the plugin all of them are our own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from progrpo.comparison.palette import colour_by_name
from progrpo.config import Config
from progrpo_components.tracking.server import RUN_ID_VARIABLE, handed_out, plugin_config, server_uri

SWITCH = "PROGRPO_TRACKING"
"""Environment variable; ``off`` logs nothing and starts no process."""
RUN_NAME_VARIABLE = "PROGRPO_PIPELINE_RUN_NAME"

RUN_TAG, ARM_TAG, SEED_TAG = "progrpo.pipeline_run_id", "progrpo.arm", "progrpo.seed"
ROLE_TAG, TASK_TAG = "progrpo.role", "progrpo.task"
COLOUR_TAG = "mlflow.runColor"

_ENVIRONMENT_TAGS = {
    "progrpo.pipeline": "PROGRPO_PIPELINE",
    "progrpo.image": "PROGRPO_IMAGE",
    "progrpo.run_url": "PROGRPO_RUN_URL",
    "mlflow.source.git.commit": "PROGRPO_GIT_COMMIT",
}
"""Tag -> the environment variable it comes from, set by the image or the pipeline; one that is not set gives no tag."""

_COMMON_TAGS = {"progrpo.run_name", "progrpo.pipeline", "progrpo.run_url", "mlflow.source.git.commit"}

Role = Literal["pipeline", "summary", "attached"]


class Place(Config):
    """Where a step logs; holds no credential, so that it may lie in a file.

    Attributes:
        uri: of the tracking server or database, without user and password.
        experiment: by name.
        pipeline_run_id: of the pipeline run that the step belongs to.
        role: the run of the pipeline, the summary of one (arm, seed), or one that Kubeflow's plugin made.
        task: the step, ``train``.
        name: of the run, if it is made here.
        arm: of the comparison.
        seed: of the training; None if nothing is trained.
        tags: of the run.
        run_id: the run to attach to, if someone else made it.
        parent_id: the run that Kubeflow's plugin made for the pipeline run.
        experiment_id: of the runs of Kubeflow's plugin.
        opened_s: Unix time.
    """

    uri: str
    experiment: str
    pipeline_run_id: str
    role: Role
    task: str
    name: str
    arm: str | None = None
    seed: int | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    run_id: str | None = None
    parent_id: str | None = None
    experiment_id: str | None = None
    opened_s: float = 0.0

    @property
    def key(self) -> dict[str, str]:
        """The tags that tell this run from every other."""
        key = {RUN_TAG: self.pipeline_run_id, ROLE_TAG: self.role}
        key |= {ARM_TAG: self.arm} if self.arm is not None else {}
        return key | ({SEED_TAG: str(self.seed)} if self.seed is not None else {})

    @property
    def all_tags(self) -> dict[str, str]:
        """Every tag of the run."""
        task = {} if self.role == "summary" else {TASK_TAG: self.task}
        # MLflow's page paints runs at random otherwise, and in a chart of two arms' seeds nobody sees which is whose.
        colour = {} if self.arm is None else {COLOUR_TAG: colour_by_name(self.arm)}
        return {**colour, **self.tags, **self.key, **task}

    @property
    def pipeline(self) -> Place:
        """The place of the pipeline run's own run, with the tags that hold for all of its steps."""
        tags = {tag: value for tag, value in self.tags.items() if tag in _COMMON_TAGS}
        name = tags.get("progrpo.run_name") or self.pipeline_run_id
        changes = {"role": "pipeline", "task": "pipeline", "arm": None, "seed": None, "name": name, "tags": tags}
        return self.model_copy(update=changes)

    def summary_of(self, arm: str, seed: int | None, tags: Mapping[str, str]) -> Place:
        """Return the place of a summary run of the same pipeline run."""
        changes = {"role": "summary", "arm": arm, "seed": seed, "name": summary_name(arm, seed), "run_id": None}
        return self.model_copy(update={**changes, "tags": {**self.tags, **tags}})

    @property
    def without_plugin(self) -> Place:
        """The place on a server that does not have the runs of Kubeflow's plugin."""
        return self.model_copy(update={"parent_id": None, "experiment_id": None})


def is_off() -> bool:
    """Whether nothing is logged: switched off, or in a pod that no server is named to.

    A database beside the step would die with the pod, and the images have no driver for one.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return True
    return server_uri() is None and "KUBERNETES_SERVICE_HOST" in os.environ


def summary_name(arm: str, seed: int | None) -> str:
    """Name a summary run as people read it: ``grpo-seed0``, ``start``."""
    return arm if seed is None else f"{arm}-seed{seed}"


def locate(
    *,
    experiment: str,
    pipeline_run_id: str,
    run_name: str = "",
    task: str,
    arm: str | None = None,
    seed: int | None = None,
    tags: Mapping[str, str] | None = None,
    own: bool = False,
) -> Place:
    """Return where a step logs, from what it is told and from its environment.

    Args:
        experiment: MLflow experiment, made if there is none.
        pipeline_run_id: of the pipeline run.
        run_name: of the pipeline run, as shown; absent: its id.
        task: the step.
        arm: of the comparison; None for a step that belongs to all of them.
        seed: of the training; None if nothing is trained.
        tags: further tags.
        own: the summary run, also where Kubeflow's plugin handed out one for the task.
    """
    shown = run_name or pipeline_run_id
    role: Role = "pipeline" if arm is None else "summary"
    name = shown if arm is None else summary_name(arm, seed)
    uri = tracking_uri()
    plugin = handed_out()
    if own:
        plugin.pop("run_id", None)
    elif plugin:
        role, name = "attached", f"{task}-{name}"
    if not plugin and (config := plugin_config()) is not None:
        plugin = {"parent_id": config.parent_run_id, "experiment_id": config.experiment_id}
    return Place(
        uri=uri,
        experiment=experiment,
        pipeline_run_id=pipeline_run_id,
        role=role,
        task=task,
        name=name,
        arm=arm,
        seed=seed,
        tags={"progrpo.run_name": shown, **_tags_of_environment(pipeline_run_id), **(tags or {})},
        opened_s=round(time.time(), 3),
        **plugin,
    )


def tracking_uri() -> str:
    """Return the server's address without user and password, else ``mlflow.db`` in the working directory."""
    uri = server_uri() or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return uri if host == parts.netloc else urlunsplit(parts._replace(netloc=host))


def _tags_of_environment(pipeline_run_id: str) -> dict[str, str]:
    tags = {tag: value for tag, name in _ENVIRONMENT_TAGS.items() if (value := os.environ.get(name))}
    ui = os.environ.get("PROGRPO_UI_ENDPOINT") or os.environ.get("KF_PIPELINES_UI_ENDPOINT")
    if ui and RUN_ID_VARIABLE not in os.environ:
        tags.setdefault("progrpo.run_url", f"{ui.rstrip('/')}/#/runs/details/{pipeline_run_id}")
    return tags
