"""A stand-in for what Kubeflow Pipelines makes of a package on a cluster."""

from kfp_driver.pods import Artifact, Pod, RefusedError, check_output, merge_env
from kfp_driver.run import Execution, FailedError, KilledError, Run, TerminatedError

__all__ = [
    "Artifact",
    "Execution",
    "FailedError",
    "KilledError",
    "Pod",
    "RefusedError",
    "Run",
    "TerminatedError",
    "check_output",
    "merge_env",
]
