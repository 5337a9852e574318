"""What a pipeline is compiled for, and what of it an older Kubeflow Pipelines would refuse.

Its API server reads a package strictly: a field that it does not know fails the upload. The fields by version are those
of its protocol buffers (api/v2alpha1/pipeline_spec.proto, kubernetes_platform/proto/kubernetes_executor_config.proto).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from progrpo.errors import ConfigError

Backend = Literal["2.15", "2.16", "2.17"]
BACKENDS: tuple[str, ...] = get_args(Backend)

DEADLINE_S = 14 * 24 * 3600
KEPT_S = 7 * 24 * 3600  # the workflow's pods and logs in the cluster; runs and artifacts stay in Kubeflow's database


@dataclass(frozen=True)
class Target:
    """What a pipeline is compiled for.

    Attributes:
        backend: version of Kubeflow Pipelines.
        queue: Kueue's local queue that every pod waits in; None: no queue.
        priority_class: Kueue's workload priority class; None: the queue's own.
        train_retries: times a failed training is tried again, which needs train.checkpointing.
        pipeline: which one; set where it is loaded.
        trainjobs: whether Kubeflow Trainer is there, as a preset may ask; kfp.local has none.
    """

    backend: str = "2.17"
    queue: str | None = None
    priority_class: str | None = None
    train_retries: int = 0
    pipeline: str = ""
    trainjobs: bool = True

    def __post_init__(self) -> None:
        """Refuse an unknown backend."""
        if self.backend not in BACKENDS:
            raise ConfigError(f"--backend {self.backend} is not known. There are: {', '.join(BACKENDS)}.")
        if self.priority_class is not None and self.queue is None:
            raise ConfigError(f"--priority-class {self.priority_class} orders a queue. Give --queue, or leave it out.")

    @property
    def has_deadlines(self) -> bool:
        """Whether a package may carry a deadline and a time to live."""
        return self.backend >= "2.17"

    @property
    def has_literals(self) -> bool:
        """Whether a parameter may carry the values it takes."""
        return self.backend >= "2.16"

    @property
    def has_security_context(self) -> bool:
        """Whether a task may carry a security context; before, the cluster's own policy is all there is."""
        return self.backend >= "2.16"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every pod."""
        queue = {} if self.queue is None else {"kueue.x-k8s.io/queue-name": self.queue}
        priority = {} if self.priority_class is None else {"kueue.x-k8s.io/priority-class": self.priority_class}
        return {"app.kubernetes.io/part-of": "progrpo", **queue, **priority}

    def pipeline_config(self) -> Any:
        """Return deadline and time to live of a pipeline run; None where the backend knows neither."""
        from kfp import dsl

        if not self.has_deadlines:
            return None
        return dsl.PipelineConfig(ttl_seconds_after_finished=KEPT_S, active_deadline_seconds=DEADLINE_S)
