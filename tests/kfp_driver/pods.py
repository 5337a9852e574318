"""The pod of a task as Kubernetes gets it: kubeflow/pipelines 2.17.0, backend/src/v2/driver, and where it says more."""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
REQUIRED, PREFERRED = (f"{kind}DuringSchedulingIgnoredDuringExecution" for kind in ("required", "preferred"))


class RefusedError(Exception):
    """The API server, the driver, the launcher or Kubernetes refuses."""


@dataclass
class Artifact:
    """An artifact, as ML Metadata has it."""

    name: str
    uri: str
    metadata: Json = field(default_factory=dict)


@dataclass
class Pod:
    """The pod of a task, as Kubernetes gets it, and what its program is told and leaves."""

    task: str
    step: str
    image: str
    limits: dict[str, str]
    requests: dict[str, str]
    node_selector: dict[str, str]
    tolerations: list[Json]
    affinity: Json
    env: list[Json]
    volumes: list[Json]
    labels: dict[str, str]
    deadline_s: int | None
    parameters: Json
    inputs: dict[str, list[Artifact]]
    outputs: dict[str, Artifact]
    results: Json = field(default_factory=dict)
    """Output parameters, which ``play`` fills in."""
    task_config: Json | None = None


def make_pod(
    name: str,
    component: Json,
    container: Json,
    config: Json,
    *,
    parameters: Json,
    inputs: dict[str, list[Artifact]],
    outputs: dict[str, Artifact],
    plugin_env: Sequence[Json],
    resolved: Callable[[Json], Any],
) -> Pod:
    """Return the pod of a task: driver.go, initPodSpecPatch; k8s.go, extendPodSpecPatch.

    Args:
        name: of the task.
        component: its spec.
        container: of its executor.
        config: of its executor, for Kubernetes.
        parameters: resolved inputs.
        inputs: likewise.
        outputs: where they are put.
        plugin_env: what the MLflow plugin hands out.
        resolved: resolves a parameter of ``config``.

    Raises:
        RefusedError: the driver or Kubernetes refuses.
    """
    env = [{"name": item["name"], "value": item["value"]} for item in container.get("env", ())]
    env += plugin_env
    for kind, reference in (("secret", "secretKeyRef"), ("configMap", "configMapKeyRef")):
        for item in config.get(f"{kind}AsEnv", ()):
            named = resolved(item[f"{kind}NameParameter"])
            for key in item["keyToEnv"]:
                value = {"name": named, "key": key[f"{kind}Key"], "optional": item.get("optional")}
                env.append({"name": key["envVar"], "valueFrom": {reference: value}})
    limits, requests = _resources(container.get("resources", {}), parameters)
    selector = config.get("nodeSelector", {})
    tolerations: list[Json] = []
    for item in config.get("tolerations", ()):
        value = resolved(item["tolerationJson"])
        if not isinstance(value, list | dict):
            raise RefusedError("encountered unexpected toleration proto value, must be either struct or list type")
        tolerations += value if isinstance(value, list) else [value] if value else []
    required, preferred = [], []
    for item in config.get("nodeAffinity", ()):
        value = _struct(resolved(item["nodeAffinityJson"]))
        required += (value.get(REQUIRED) or {}).get("nodeSelectorTerms", [])
        preferred += value.get(PREFERRED) or []
    affinity: Json = {"nodeAffinity": {}} if required or preferred else {}
    if required:
        affinity["nodeAffinity"][REQUIRED] = {"nodeSelectorTerms": required}
    if preferred:
        affinity["nodeAffinity"][PREFERRED] = preferred
    own = {
        "RESOURCES": {"limits": limits, "requests": requests},
        "ENV": env,
        "KUBERNETES_AFFINITY": affinity,
        "KUBERNETES_TOLERATIONS": tolerations,
        "KUBERNETES_NODE_SELECTOR": _struct(resolved(selector["nodeSelectorJson"])) if selector else {},
    }
    # driver.go, getTaskConfigOptions; container.go, Container: what goes to the task's own pod, and what to its
    # argument of type TaskConfig, whose fields are those of the SDK and whose lists are not merged
    passed = {item["field"]: item.get("applyToTask", False) for item in component.get("taskConfigPassthroughs", ())}
    pod = {key: value if passed.get(key, True) else type(value)() for key, value in own.items()}
    task_config = None
    for key, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
        if definition["parameterType"] == "TASK_CONFIG":
            handed = {key: value if key in passed else None for key, value in own.items()}
            task_config = {
                "affinity": handed["KUBERNETES_AFFINITY"] or None,
                "tolerations": handed["KUBERNETES_TOLERATIONS"] or None,
                "nodeSelector": handed["KUBERNETES_NODE_SELECTOR"] or None,
                "env": handed["ENV"] or None,
                "volumes": None,
                "volumeMounts": None,
                "resources": {kind: values for kind, values in (handed["RESOURCES"] or {}).items() if values},
            }
            parameters = {**parameters, key: task_config}
    common = [{"name": key, "valueFrom": {"fieldRef": {}}} for key in ("KFP_POD_NAME", "KFP_POD_UID")]
    return Pod(
        task=name,
        step=config["podMetadata"]["labels"]["progrpo.io/step"],
        image=str(_runtime_value(container["image"], parameters)),
        limits=pod["RESOURCES"].get("limits", {}),
        requests=pod["RESOURCES"].get("requests", {}),
        node_selector=pod["KUBERNETES_NODE_SELECTOR"],
        tolerations=pod["KUBERNETES_TOLERATIONS"],
        affinity=pod["KUBERNETES_AFFINITY"],
        env=merge_env(common, pod["ENV"]),
        volumes=config.get("emptyDirMounts", []),
        labels=config["podMetadata"]["labels"],
        deadline_s=int(config["activeDeadlineSeconds"]) if "activeDeadlineSeconds" in config else None,
        parameters=parameters,
        inputs=inputs,
        outputs={key: Artifact(item.name, item.uri) for key, item in outputs.items()},
        task_config=task_config,
    )


def provision(pipeline_root: str, name: str, component: Json) -> dict[str, Artifact]:
    """Say where a task's outputs are put: driver.go, provisionOutputs; v2/metadata/client.go, GenerateOutputURI."""
    base = f"{pipeline_root.partition('?')[0].rstrip('/')}/{name}/{uuid.uuid4()}"  # a query of the root is dropped
    return {key: Artifact(key, f"{base}/{key}") for key in component.get("outputDefinitions", {}).get("artifacts", {})}


def check_output(uri: str, pipeline_root: str) -> None:
    """Refuse what the launcher would not upload: v2/objectstore/config.go, ParseBucketPathToConfig, KeyFromURI."""
    found = re.fullmatch(r"([a-z][a-z0-9]+:///?)([^/?]+)(/[^?]*)?(\?.+)?", pipeline_root)
    if found is None or found[1] not in ("gs://", "s3://", "minio://", "mem://"):
        raise RefusedError(f"unsupported Cloud bucket: {pipeline_root}")
    prefix = found[1] + posixpath.normpath(posixpath.join(found[2], (found[3] or "").strip("/")))
    if not uri.startswith(prefix):
        raise RefusedError(f"URI {uri!r} does not have expected bucket prefix {prefix!r}")


def merge_env(*lists: Sequence[Json]) -> list[Json]:
    """Merge variables as a strategic merge patch does, which the pod's patch is: entry by entry, by name.

    Raises:
        RefusedError: one has then both (kubernetes/kubernetes 1.36, pkg/apis/core/validation/validation.go,
            validateEnvVarValueFrom), so that the pod cannot be made.
    """
    merged: dict[str, Json] = {}
    for entry in (entry for entries in lists for entry in entries):
        merged[entry["name"]] = {**merged.get(entry["name"], {}), **entry}
    for name, entry in merged.items():
        if entry.get("value") and "valueFrom" in entry:
            raise RefusedError(f"env[{name}].valueFrom: Invalid value: may not be specified when `value` is not empty")
    return list(merged.values())


def _resources(resources: Json, parameters: Json) -> tuple[dict[str, str], dict[str, str]]:
    """Return limits and requests: driver.go, getPodResource and what initPodSpecPatch does with the accelerator."""
    limits, requests = {}, {}
    for kind in ("Memory", "Cpu"):
        for suffix, target in (("Limit", limits), ("Request", requests)):
            if source := resources.get(f"resource{kind}{suffix}"):
                target[kind.lower()] = _quantity(_runtime_value(source, parameters))
    if accelerator := resources.get("accelerator"):
        name = _runtime_value(accelerator["resourceType"], parameters)
        count = _runtime_value(accelerator["resourceCount"], parameters)
        if name and count:
            limits[name] = _quantity(count)
    return limits, requests


def _runtime_value(text: str, parameters: Json) -> str:
    """Resolve a run-time setting of a container, by texts alone: resolve.go, resolvePodSpecInputRuntimeParameter."""
    found = re.search(r"\$.inputs.parameters\['(.+?)'\]", text)
    if found is None:
        return text
    if found[1] not in parameters:
        raise RefusedError("executorInput did not contain container Image input parameter")
    value = parameters[found[1]]
    return value if isinstance(value, str) else ""


def _quantity(text: str) -> str:
    if not re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?", text):
        raise RefusedError(f"quantities must match the regular expression, not {text!r}")
    return text


def _struct(value: Any) -> Json:
    """Take a mapping; of any other value Kubernetes gets nothing: resolve.go, resolveK8sJsonParameter."""
    return value if isinstance(value, dict) else {}
