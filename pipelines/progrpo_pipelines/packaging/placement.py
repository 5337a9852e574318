"""What each task's pod asks Kubernetes for.

Resources, node selector, tolerations and affinity of the GPU tasks come from the run's parameters. Labels, among them
Kueue's queue and priority, are fixed when a pipeline is compiled: Kubeflow Pipelines 2.17 takes no parameter there. It
has no field for a PriorityClass of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import kubernetes

from progrpo_components import images, variables
from progrpo_pipelines.packaging.target import Target

Task = Any  # kfp.dsl.PipelineTask

CONFIG_MAP = "progrpo-defaults"
PLACEMENT = ("gpu_type", "gpu_count", "cpu", "memory", "node_selector", "tolerations", "node_affinity")
"""Outputs of validate-inputs that say where a GPU task runs."""

S3_SECRET, MLFLOW_SECRET = "progrpo-s3", "progrpo-mlflow"
SECRETS = {S3_SECRET: variables.S3_SECRET, MLFLOW_SECRET: variables.MLFLOW_SECRET}
"""Names that charts/progrpo makes or refers to."""

_WITHOUT_MLFLOW = ("validate-inputs", "prepare-dataset", "import-checkpoint")

_CACHE = "/cache"  # the images point HF_HOME, VLLM_CACHE_ROOT and the like below it
_SHARED_MEMORY = "16Gi"  # NCCL and the loader's workers; counts against the pod's memory


def place(task: Task, step: str, target: Target, *, timeout_s: int | None = None) -> Task:
    """Set what every pod has: labels, environment, caches, security context.

    Args:
        task: the task.
        step: name of its step.
        target: what is compiled for.
        timeout_s: the pod is ended after this long; None: by the run's deadline only.
    """
    for key, value in {**target.labels, "progrpo.io/step": step}.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    keys = {key: variable for variable, key in variables.CONFIG_MAP.items()}
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, keys, optional=True)
    for secret, named in SECRETS.items():
        if not (secret == MLFLOW_SECRET and step in _WITHOUT_MLFLOW):
            keys = {key: variable for variable, key in named.items()}
            kubernetes.use_secret_as_env(task, secret, keys, optional=True)
    kubernetes.empty_dir_mount(task, "cache", _CACHE)
    if target.has_security_context:
        kubernetes.set_security_context(task, run_as_non_root=True)
    if timeout_s is not None:
        kubernetes.set_timeout(task, timeout_s)
    task.set_env_variable("PROGRPO_PIPELINE", target.pipeline)
    return task


def place_on_cpu(task: Task, step: str, target: Target, *, timeout_s: int, memory: str = "4Gi") -> Task:
    """Place a task that needs no GPU."""
    place(task, step, target, timeout_s=timeout_s)
    task.set_env_variable("PROGRPO_IMAGE", images.CPU)
    task.set_cpu_request("1").set_cpu_limit("2").set_memory_request(memory).set_memory_limit(memory)
    return task


def place_on_gpu(task: Task, step: str, target: Target, placement: Mapping[str, Any]) -> Task:
    """Place a task on the GPUs that the run's parameters name.

    Args:
        task: the task.
        step: name of its step.
        target: what is compiled for.
        placement: channels of :data:`PLACEMENT`.
    """
    place(task, step, target)
    task.set_env_variable("PROGRPO_IMAGE", images.GPU)
    # Inside a loop kfp 2.17.0 hands on only channels that it knows the task to use, and resources it does not look at.
    task.register_pipeline_channels([placement[name] for name in ("gpu_type", "gpu_count", "cpu", "memory")])
    task.set_accelerator_type(placement["gpu_type"]).set_accelerator_limit(placement["gpu_count"])
    task.set_cpu_request(placement["cpu"]).set_cpu_limit(placement["cpu"])
    task.set_memory_request(placement["memory"]).set_memory_limit(placement["memory"])
    kubernetes.add_node_selector_json(task, placement["node_selector"])
    kubernetes.add_toleration_json(task, placement["tolerations"])
    kubernetes.add_node_affinity_json(task, placement["node_affinity"])
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=_SHARED_MEMORY)  # noqa: S108
    return task
