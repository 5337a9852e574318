"""What every manifest of our charts must keep to. ``test_policy.py`` shows each rule finding its violation.

The restricted Pod Security standard is written after https://kubernetes.io/docs/concepts/security/pod-security-standards/
(Kubernetes 1.35). The rest is ours: rights, secrets, images, resources, probes, labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from charts.helm import Manifest, Pod, key, pods

LABELS = ("name", "instance", "version", "managed-by", "part-of")  # of app.kubernetes.io
LONG_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")

_CLUSTER_WIDE = {
    *("APIService", "ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime", "CustomResourceDefinition"),
    *("MutatingWebhookConfiguration", "Namespace", "PersistentVolume", "PriorityClass", "RuntimeClass"),
    *("StorageClass", "ValidatingAdmissionPolicy", "ValidatingWebhookConfiguration"),
}
_POWERS = {"bind", "escalate", "impersonate"}
_TOO_MUCH = {"pods/exec", "pods/attach", "serviceaccounts/token", "secrets"}
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image"),
    *("persistentVolumeClaim", "projected", "secret"),
}
_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
}
_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE_KEY|ACCESS_KEY|API_?KEY)", re.IGNORECASE)
_NOT_SECRET = re.compile(r"(_FILE|_PATH|_NAME)$", re.IGNORECASE)  # say where a secret is
_USERINFO = re.compile(r"://[^/\s:@$]+:[^/\s@$]+@")  # user:password@ in a URL; $(VARIABLE) is a reference


@dataclass(frozen=True)
class Exceptions:
    """What a chart may do that others may not, each by ``Kind/name``, so that a reader sees it in the test."""

    tokens: Collection[str] = ()
    """Manifests whose pods talk to the API server with the mounted token."""
    generated_secrets: Collection[str] = ()
    """Secrets that the chart makes from random text."""


def violations(
    manifests: Iterable[Manifest], exceptions: Exceptions | None = None, *, namespace: str = "team-a"
) -> list[str]:
    """Return every breach as ``Kind/name: what``."""
    manifests, allowed = list(manifests), exceptions or Exceptions()
    found = [f"{key(m)}: {problem}" for m in manifests for rule in _MANIFEST_RULES for problem in rule(m, allowed)]
    found += [
        f"{pod.name}: {problem}" for pod in pods(manifests) for rule in _POD_RULES for problem in rule(pod, allowed)
    ]
    found += [
        f"{key(m)}: in namespace {m['metadata'].get('namespace')}"
        for m in manifests
        if m["metadata"].get("namespace", namespace) != namespace
    ]
    names = [key(m) for m in manifests]
    found += [f"{name}: made {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]
    return found


# Manifests


def _no_cluster_wide_rights(manifest: Manifest, _: Exceptions) -> Iterator[str]:
    kind = manifest["kind"]
    if kind in _CLUSTER_WIDE:
        yield f"{kind} is cluster-wide; a team may make namespaced objects only"
    if kind == "RoleBinding" and manifest["roleRef"]["kind"] != "Role":
        yield f"binds the {manifest['roleRef']['kind']} {manifest['roleRef']['name']}, whose rights we do not know"
    if kind != "Role":
        return
    for rule in manifest["rules"]:
        wide = [field for field in ("apiGroups", "resources", "verbs") if "*" in rule.get(field, ())]
        if wide or "nonResourceURLs" in rule:
            yield f"a rule without bounds: {rule}"
        if powers := _POWERS & set(rule["verbs"]):
            yield f"may {', '.join(sorted(powers))}"
        if much := _TOO_MUCH & set(rule["resources"]):
            yield f"has rights on {', '.join(sorted(much))}"


def _no_secret_in_clear(manifest: Manifest, allowed: Exceptions) -> Iterator[str]:
    if manifest["kind"] == "Secret":
        if key(manifest) not in allowed.generated_secrets:
            yield "a Secret made by the chart; refer to an existing one"
        return
    if manifest["kind"] == "ConfigMap":
        for name in manifest.get("data", {}):
            if _looks_secret(name):
                yield f"{name} in a ConfigMap"
    for text in _texts(manifest):
        if _USERINFO.search(text):
            yield f"a password in a URL: {_USERINFO.sub('://***@', text)}"


def _recommended_labels(manifest: Manifest, _: Exceptions) -> Iterator[str]:
    labels = manifest["metadata"].get("labels", {})
    wanted = [*(f"app.kubernetes.io/{name}" for name in LABELS), "helm.sh/chart"]
    if missing := [label for label in wanted if not labels.get(label)]:
        yield f"no label {', '.join(missing)}"


def _stable_selectors(manifest: Manifest, _: Exceptions) -> Iterator[str]:
    """A selector cannot change in an upgrade, so what does change cannot be in it; and it finds its own pods."""
    if manifest["kind"] not in LONG_RUNNING:
        return
    selector = manifest["spec"]["selector"]["matchLabels"]
    for label in ("app.kubernetes.io/version", "helm.sh/chart"):
        if label in selector:
            yield f"{label} in the selector"
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    if not selector.items() <= labels.items():
        yield f"selects {selector}, its pods are {labels}"


def _bounded_jobs(manifest: Manifest, _: Exceptions) -> Iterator[str]:
    spec = {"Job": lambda: manifest["spec"], "CronJob": lambda: manifest["spec"]["jobTemplate"]["spec"]}.get(
        manifest["kind"]
    )
    if spec is not None and (
        missing := [field for field in ("activeDeadlineSeconds", "backoffLimit") if field not in spec()]
    ):
        yield f"no {', '.join(missing)}: it could run or retry for ever"


# Pods


def _restricted_pod(pod: Pod, _: Exceptions) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield field
    for volume in pod.spec.get("volumes", ()):
        if types := set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(sorted(types))}"
    for sysctl in context.get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for container in pod.containers:
        for problem in _restricted_container(container, context):
            yield f"container {container['name']}: {problem}"


def _restricted_container(container: Mapping[str, Any], pod_context: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    context = {**pod_context, **own}
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield "AppArmor is unconfined"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("privileged"):
        yield "privileged"
    if own.get("procMount", "Default") != "Default":
        yield f"procMount {own['procMount']}"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"capabilities {capabilities or 'are kept'}"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for action in ("httpGet", "tcpSocket"):
            if container.get(probe, {}).get(action, {}).get("host"):
                yield f"{probe} asks another host"


def _read_only_root(pod: Pod, _: Exceptions) -> Iterator[str]:
    for container in pod.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"container {container['name']}: the root file system is writable"


def _bounded_volumes(pod: Pod, _: Exceptions) -> Iterator[str]:
    for volume in pod.spec.get("volumes", ()):
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} has no sizeLimit"


def _resources(pod: Pod, _: Exceptions) -> Iterator[str]:
    for container in pod.containers:
        resources = container.get("resources", {})
        missing = [
            f"{side}.{resource}"
            for side in ("requests", "limits")
            for resource in ("cpu", "memory")
            if resource not in (resources.get(side) or {})
        ]
        if missing:
            yield f"container {container['name']}: no {', '.join(missing)}"


def _probes(pod: Pod, _: Exceptions) -> Iterator[str]:
    if pod.owner["kind"] in LONG_RUNNING:
        for container in pod.spec["containers"]:
            if missing := [probe for probe in ("readinessProbe", "livenessProbe") if probe not in container]:
                yield f"container {container['name']}: no {', '.join(missing)}"


def _pinned_images(pod: Pod, _: Exceptions) -> Iterator[str]:
    for container in pod.containers:
        image = container["image"]
        name, _at, digest = image.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        if tag == "latest" or not (tag or digest):
            yield f"container {container['name']}: image {image} is not pinned"
        if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield f"container {container['name']}: image {image} has no SHA-256 digest"
        if not {".", ":"} & set(image.partition("/")[0]) and not image.startswith("localhost/"):
            yield f"container {container['name']}: image {image} names no registry"


def _env_secrets(pod: Pod, _: Exceptions) -> Iterator[str]:
    for container in pod.containers:
        for variable in container.get("env", ()):
            if "value" in variable and _looks_secret(variable["name"]):
                yield f"container {container['name']}: {variable['name']} in clear"


def _token_only_where_needed(pod: Pod, allowed: Exceptions) -> Iterator[str]:
    mounted, needed = pod.spec.get("automountServiceAccountToken"), pod.name in allowed.tokens
    if mounted is None:
        yield "automountServiceAccountToken is left to the service account"
    elif mounted and not needed:
        yield "mounts a service account's token"
    elif needed and not mounted:
        yield "needs a token, does not mount it"


def _pod_labels(pod: Pod, _: Exceptions) -> Iterator[str]:
    labels = pod.metadata.get("labels", {})
    if missing := [name for name in ("name", "instance", "component") if not labels.get(f"app.kubernetes.io/{name}")]:
        yield f"its pods have no label app.kubernetes.io/{', '.join(missing)}"


def _looks_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


_MANIFEST_RULES: tuple[Callable[[Manifest, Exceptions], Iterator[str]], ...] = (
    _no_cluster_wide_rights,
    _no_secret_in_clear,
    _recommended_labels,
    _stable_selectors,
    _bounded_jobs,
)
_POD_RULES: tuple[Callable[[Pod, Exceptions], Iterator[str]], ...] = (
    _restricted_pod,
    _read_only_root,
    _bounded_volumes,
    _resources,
    _probes,
    _pinned_images,
    _env_secrets,
    _token_only_where_needed,
    _pod_labels,
)
