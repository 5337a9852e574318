"""Settings of training over several nodes by a TrainJob of Kubeflow Trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from progrpo.config.training import TrainConfig
from progrpo.settings import Config

DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


class NodeResources(Config):
    """What a node gets, as in the ``resources`` of a pod's container."""

    limits: dict[str, int | str] = Field({}, description="such as {nvidia.com/gpu: 8, memory: 900Gi}")
    requests: dict[str, int | str] = Field({}, description="such as {cpu: 64, memory: 900Gi}")


class TrainJobConfig(Config):
    """Where and how a TrainJob runs. Its ranks are ``train.distributed.num_processes``, equally many on each node."""

    num_nodes: int = Field(2, ge=1, le=256, description="pods that train together; ours")
    runtime: str | None = Field(
        None, pattern=DNS_NAME, description="the training runtime; absent: the chart's, PROGRPO_TRAINING_RUNTIME"
    )
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = Field(
        "TrainingRuntime", description="of this namespace, or of the whole cluster"
    )
    api: Literal["auto", "runtimePatches", "podTemplateOverrides"] = Field(
        "auto", description="how a TrainJob changes pods: Trainer 2.2 and later, or 2.1; auto: ask the API server"
    )
    image: str | None = Field(None, min_length=1, max_length=500, description="absent: the runtime's")
    resources_per_node: NodeResources | None = Field(
        None, description="absent: those of the pipeline's task, else the runtime's"
    )
    queue: str | None = Field(None, pattern=DNS_NAME, description="Kueue LocalQueue; absent: none")
    priority_class: str | None = Field(None, pattern=DNS_NAME, description="Kueue WorkloadPriorityClass; needs queue")
    service_account: str | None = Field(None, pattern=DNS_NAME, description="of the pods; absent: the runtime's")
    image_pull_secrets: tuple[str, ...] = ()
    shm_size: str = Field("16Gi", pattern=QUANTITY, description="of /dev/shm, counted as memory; ours")
    config_map: str = Field(
        "progrpo-defaults",
        pattern=DNS_NAME,
        description="keys MLFLOW_TRACKING_URI, AWS_REGION, ...; may be absent",
    )
    s3_secret: str = Field("progrpo-s3", pattern=DNS_NAME, description="keys AWS_ACCESS_KEY_ID, ...; may be absent")
    mlflow_secret: str = Field(
        "progrpo-mlflow", pattern=DNS_NAME, description="keys MLFLOW_TRACKING_USERNAME, ...; may be absent"
    )
    deadline_s: int | None = Field(
        7 * 86400, ge=60, description="longest run, waiting for pods included, in a queue not; absent: none; ours"
    )
    pending_timeout_s: int = Field(
        1800, ge=10, description="how long a pod may find no node, or the TrainJob have no pods; ours"
    )
    queue_timeout_s: int | None = Field(
        None, ge=10, description="how long Kueue may hold it back; absent: as long as the pipeline runs"
    )

    @model_validator(mode="after")
    def _priority_needs_a_queue(self) -> TrainJobConfig:
        if self.priority_class is not None and self.queue is None:
            raise ValueError(
                "priority_class is Kueue's and needs queue. A pod priority class goes into the training runtime"
            )
        return self

    def processes_per_node(self, train: TrainConfig) -> int:
        """Return the ranks on each node.

        Raises:
            ValueError: the ranks do not divide among the nodes.
        """
        ranks = train.distributed.num_processes
        if ranks % self.num_nodes:
            raise ValueError(
                f"train.distributed.num_processes is {ranks}, which does not divide among trainjob.num_nodes "
                f"{self.num_nodes}. Give a multiple of it: nodes x GPUs of a node"
            )
        return ranks // self.num_nodes
