"""Which MLflow run a step logs into: all that is needed to find or make it, now or on another day.

1. ``MLFLOW_RUN_ID``: Kubeflow's MLflow plugin made a run for this task, and the step attaches to it.
2. ``KFP_MLFLOW_CONFIG``: the plugin runs, but does not hand the run of the task on; the step logs into a nested run of
   its own below the plugin's run of the pipeline.
3. Else runs of our own: one for the pipeline run, and a flat *summary run* for each arm and seed.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from progrpo.comparison.palette import colour_by_name
from progrpo.config import Config

logger = logging.getLogger(__name__)

SWITCH = "PROGRPO_TRACKING"
"""Environment variable; ``off`` logs nothing and starts no process."""
RUN_ID_VARIABLE = "PROGRPO_PIPELINE_RUN_ID"
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

Role = Literal["pipeline", "summary", "task", "attached"]


class Place(Config):
    """Where a step logs; holds no credential, so that it may lie in a file.

    Attributes:
        uri: of the tracking server or database, without user and password.
        experiment: by name.
        pipeline_run_id: of the pipeline run that the step belongs to.
        role: the run of the pipeline, the summary of one (arm, seed), a task's below Kubeflow's run of the pipeline, or
            Kubeflow's own run of the task.
        task: the step, ``train``.
        name: of the run, if it is made here.
        arm: of the comparison.
        seed: of the training; None if nothing is trained.
        tags: of the run.
        run_id: the run to attach to, if someone else made it.
        parent_id: the run to nest a task's run under.
        experiment_id: of the runs of Kubeflow's plugin, which has a run for the pipeline run then.
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
        key |= {SEED_TAG: str(self.seed)} if self.seed is not None else {}
        return key | ({TASK_TAG: self.task} if self.role == "task" else {})

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
        return self.model_copy(update={**changes, "parent_id": None, "tags": {**self.tags, **tags}})


def is_off() -> bool:
    """Whether nothing is logged: switched off, or in a pod that no server is named to.

    A database beside the step would die with the pod, and the images have no driver for one.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return True
    named = os.environ.get("MLFLOW_TRACKING_URI") or plugin_of_task().get("uri")
    return not named and "KUBERNETES_SERVICE_HOST" in os.environ


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
        own: the summary run, also where Kubeflow's plugin made one for the task.
    """
    shown = run_name or pipeline_run_id
    role: Role = "pipeline" if arm is None else "summary"
    name = shown if arm is None else summary_name(arm, seed)
    plugin = plugin_of_task()
    if own:
        plugin = {key: value for key, value in plugin.items() if key in ("experiment_id", "uri")}
    elif plugin:
        role, name = "attached" if "run_id" in plugin else "task", f"{task}-{name}"
    return Place(
        uri=tracking_uri(plugin.pop("uri", "")),
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


def tracking_uri(fallback: str = "") -> str:
    """Return ``MLFLOW_TRACKING_URI`` without user and password, else ``mlflow.db`` in the working directory."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or fallback or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return uri if host == parts.netloc else urlunsplit(parts._replace(netloc=host))


def plugin_of_task() -> dict[str, str]:
    """Return what Kubeflow's MLflow plugin tells this task: ``run_id`` or ``parent_id``, ``experiment_id``, ``uri``."""
    if RUN_ID_VARIABLE in os.environ:
        return {}  # progrpo run, whose tasks share one environment: they would all log into one run
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
        return {"run_id": run_id} | ({"experiment_id": experiment} if experiment else {})
    raw = os.environ.get("KFP_MLFLOW_CONFIG")
    if not raw:
        return {}
    # Internal to KFP, which promises nothing about it: whatever is not as expected is as if it were not there.
    try:
        config = json.loads(raw)
        parent, experiment, endpoint = (config.get(key) for key in ("parentRunId", "experimentId", "endpoint"))
    except (ValueError, AttributeError):
        parent = experiment = endpoint = None
    if not (isinstance(parent, str) and parent and isinstance(experiment, str) and experiment):
        logger.warning("KFP_MLFLOW_CONFIG is not as expected and is ignored")
        return {}
    found = {"parent_id": parent, "experiment_id": experiment}
    return found | ({"uri": endpoint} if isinstance(endpoint, str) and endpoint else {})


def _tags_of_environment(pipeline_run_id: str) -> dict[str, str]:
    tags = {tag: value for tag, name in _ENVIRONMENT_TAGS.items() if (value := os.environ.get(name))}
    if (ui := os.environ.get("KF_PIPELINES_UI_ENDPOINT")) and RUN_ID_VARIABLE not in os.environ:
        tags.setdefault("progrpo.run_url", f"{ui.rstrip('/')}/#/runs/details/{pipeline_run_id}")
    return tags
