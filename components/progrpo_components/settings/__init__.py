"""Settings of the pipelines: what ``progrpo run --set`` and the Kubeflow form speak, and where and how pods run."""

from progrpo_components.settings.pipelines import (
    PIPELINES,
    ComparePipeline,
    EvaluatePipeline,
    PreparePipeline,
    TrainAndEvaluatePipeline,
)
from progrpo_components.settings.placement import PlacementConfig
from progrpo_components.settings.trainjob import TrainJobConfig

__all__ = [
    "PIPELINES",
    "ComparePipeline",
    "EvaluatePipeline",
    "PlacementConfig",
    "PreparePipeline",
    "TrainAndEvaluatePipeline",
    "TrainJobConfig",
]
