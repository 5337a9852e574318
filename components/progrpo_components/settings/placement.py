"""Where the GPU tasks of a pipeline run on a cluster; a run on this machine ignores it.

Keys inside tolerations and affinity are Kubernetes' own, so that what works in a pod works here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from progrpo.settings import Config

# What resource.ParseQuantity of k8s.io/apimachinery takes (pkg/api/resource/quantity.go, suffix.go), without a sign.
_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]+)?$"
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9.-]{{1,253}}/)?{_NAME}$")]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^({_NAME})?$")]


class Toleration(Config):
    """Toleration of a taint, as in a pod."""

    key: LabelKey | None = Field(None, description="absent, with operator Exists: every taint")
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="absent: every one")
    tolerationSeconds: int | None = Field(None, ge=0, description="of NoExecute; absent: for ever")

    @model_validator(mode="after")
    def _fits(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value; leave it out, or use Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key; without one, use Exists")
        return self


class SelectorRequirement(Config):
    """One condition on a node's labels or fields."""

    key: str = Field(min_length=1)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> SelectorRequirement:
        if (self.operator in ("Exists", "DoesNotExist")) == bool(self.values):
            raise ValueError(f"operator {self.operator} {'takes no' if self.values else 'needs'} values")
        return self


class NodeSelectorTerm(Config):
    """Conditions that hold together."""

    matchExpressions: tuple[SelectorRequirement, ...] = ()
    matchFields: tuple[SelectorRequirement, ...] = ()


class RequiredNodes(Config):
    """Nodes of which one must fit any of the terms."""

    nodeSelectorTerms: tuple[NodeSelectorTerm, ...] = Field(min_length=1)


class PreferredNodes(Config):
    """Nodes that are taken first."""

    weight: int = Field(ge=1, le=100)
    preference: NodeSelectorTerm


class NodeAffinity(Config):
    """``affinity.nodeAffinity`` of a pod."""

    requiredDuringSchedulingIgnoredDuringExecution: RequiredNodes | None = None
    preferredDuringSchedulingIgnoredDuringExecution: tuple[PreferredNodes, ...] = ()


class PlacementConfig(Config):
    """What a training or evaluation pod asks the cluster for."""

    gpu_type: str = Field(
        "nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$",
        description="resource name of the GPU, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu",
    )
    gpu_count: int = Field(1, ge=0, le=1024, description="GPUs of a pod; 0: none")
    cpu: str = Field("4", pattern=_QUANTITY, description="CPU cores of a pod, requested and limited; ours")
    memory: str = Field("32Gi", pattern=_QUANTITY, description="memory of a pod, requested and limited; ours")
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="labels of the node, such as nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3"
    )
    tolerations: tuple[Toleration, ...] = ()
    node_affinity: NodeAffinity = NodeAffinity()

    @field_validator("node_selector", mode="before")
    @classmethod
    def _null_takes_a_label_away(cls, labels: Any) -> Any:
        return (
            {key: value for key, value in labels.items() if value is not None} if isinstance(labels, dict) else labels
        )
