"""What an upgrade or a rollback may not change: fields that Kubernetes refuses to change in an object that exists.

There is no cluster here: the rules are written after the API server's validation (Kubernetes 1.35), and
``test_upgrade.py`` shows each finding its change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from charts.helm import Manifest, key
from webhooks import IMMUTABLE

# Of spec: everything but these is fixed.
_STATEFUL_SET = {
    *("minReadySeconds", "ordinals", "persistentVolumeClaimRetentionPolicy", "replicas", "revisionHistoryLimit"),
    *("template", "updateStrategy"),
}
_JOB = {"activeDeadlineSeconds", "parallelism", "suspend", "ttlSecondsAfterFinished", "backoffLimit"}
_CLAIM = {"resources", "volumeAttributesClassName"}
# The kinds whose loss is the loss of data.
_PRECIOUS = ("PersistentVolumeClaim", "StatefulSet", "Secret")


def refused(before: Iterable[Manifest], after: Iterable[Manifest]) -> list[str]:
    """Return what the API server would refuse when the manifests of one release become those of another.

    Hooks are left out: Helm deletes them before it makes them again.
    """
    old = {key(manifest): manifest for manifest in before if not _is_hook(manifest)}
    new = {key(manifest): manifest for manifest in after if not _is_hook(manifest)}
    return [
        f"{name}: {problem}" for name in sorted(old.keys() & new.keys()) for problem in changes(old[name], new[name])
    ]


def lost(before: Iterable[Manifest], after: Iterable[Manifest]) -> list[str]:
    """Return the objects with data that the second release has no more and Helm would delete."""
    left = {key(manifest) for manifest in after}
    return sorted(key(m) for m in before if m["kind"] in _PRECIOUS and key(m) not in left and not _is_kept(m))


def changes(old: Manifest, new: Manifest) -> Iterator[str]:
    """Yield what the API server refuses to change in one object."""
    if old["apiVersion"].partition("/")[0] != new["apiVersion"].partition("/")[0]:
        yield f"apiVersion {old['apiVersion']} -> {new['apiVersion']}"
    before, after = old.get("spec") or {}, new.get("spec") or {}
    match old["kind"]:
        case "Deployment" | "DaemonSet":
            yield from _differences(before, after, {"selector"})
        case "StatefulSet":
            yield from _differences(before, after, (before.keys() | after.keys()) - _STATEFUL_SET)
        case "Job":
            yield from _differences(before, after, (before.keys() | after.keys()) - _JOB)
        case "PersistentVolumeClaim":
            yield from _differences(before, after, (before.keys() | after.keys()) - _CLAIM)
        case "Service":
            yield from _differences(before, after, {"clusterIP"})
        case "RoleBinding":
            yield from _differences(old, new, {"roleRef"})
        case "TrainingRuntime":
            yield from _fixed_of_runtime(before["template"]["spec"], after["template"]["spec"])
        case "LocalQueue":
            yield from _differences(before, after, {"clusterQueue"})
        case "ConfigMap" | "Secret" if old.get("immutable"):
            yield from _differences(old, new, {"data", "binaryData", "stringData", "immutable"})
        case "Secret":
            yield from _differences(old, new, {"type"})


def _fixed_of_runtime(old: Any, new: Any) -> Iterator[str]:
    """Yield what the CRD's CEL rules say of a runtime: they compare a field only where both have it."""
    yield from _differences(old, new, [field for field in IMMUTABLE if field in old and field in new])
    before = {job["name"]: job for job in old.get("replicatedJobs", ())}
    for job in new.get("replicatedJobs", ()):
        if "dependsOn" in job and "dependsOn" in before.get(job["name"], {}):
            yield from _differences(before[job["name"]], job, {"dependsOn"})


def _differences(old: Any, new: Any, fields: Iterable[str]) -> Iterator[str]:
    for field in sorted(fields):
        if old.get(field) != new.get(field):
            yield f"{field} {old.get(field)} -> {new.get(field)}"


def _is_hook(manifest: Manifest) -> bool:
    return "helm.sh/hook" in manifest["metadata"].get("annotations", {})


def _is_kept(manifest: Manifest) -> bool:
    return manifest["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
