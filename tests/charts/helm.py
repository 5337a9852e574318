"""Charts in tests: Helm's own engine renders and lints them, published schemas check what comes out.

There is no cluster and no API server here: what an admission webhook or a controller would say is not tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from repetitions import repetitions

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "charts"
VALUES = Path(__file__).with_name("values")
_SUPPORTED = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
KUBERNETES = _SUPPORTED if repetitions("versions of Kubernetes") == len(_SUPPORTED) else (_SUPPORTED[0], _SUPPORTED[-1])

_CRDS = Path(__file__).with_name("crds")
_WARNING = 2  # helm's severities: 1 info, 2 warning, 3 error
_JOB_PATH = ("spec", "template", "spec", "replicatedJobs")  # of a TrainingRuntime: Jobs, of which pods


@dataclass(frozen=True)
class Release:
    """What Helm would send to the API server for one release: hooks and tests included, notes apart."""

    manifests: tuple[Manifest, ...]
    notes: str

    def of(self, *kinds: str) -> list[Manifest]:
        """Return the manifests of these kinds."""
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        """Return the only manifest of this kind (and name)."""
        found = [m for m in self.of(kind) if name is None or m["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name or ''}: {len(found)} in {sorted(map(key, self.manifests))}"
        return found[0]

    def pod(self, name: str) -> Pod:
        """Return the pod of the manifest ``Kind/name``, or of the first of a kind."""
        return next(pod for pod in pods(self.manifests) if name in (pod.name, pod.owner["kind"]))


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest makes."""

    owner: Manifest
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Kind and name of the manifest."""
        return key(self.owner)

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """Init containers, then containers."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector of the API matches; of its expressions only ``In`` is known."""
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def key(manifest: Manifest) -> str:
    """Return ``Kind/name``, which is unique in a release of ours."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def render(
    chart: Path | str,
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "progrpo",
    namespace: str = "team-a",
    upgrade: bool = False,
) -> Release:
    """Render a chart of ``charts/`` by name, or any folder or archive by path.

    Raises:
        helm_python.HelmValuesError: the values do not fit ``values.schema.json``.
        helm_python.HelmRenderError: a template failed.
    """
    with helm_python.Chart.load(_path(chart)) as loaded:
        files = loaded.render(
            dict(values or {}), name=name, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade
        )
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    manifests = [
        manifest
        for path, text in sorted(files.items())
        if not path.endswith("NOTES.txt")
        for manifest in yaml.load_all(text, yaml.CSafeLoader)
        if manifest is not None
    ]
    return Release(tuple(manifests), notes)


def lint(chart: Path | str, values: Mapping[str, Any] | None = None, *, kube_version: str = "v1.31.0") -> list[str]:
    """Return what ``helm lint --strict --with-subcharts`` objects to; infos are left out."""
    report = helm_python.lint(
        _path(chart),
        dict(values or {}),
        strict=True,
        with_subcharts=True,
        namespace="team-a",
        kube_version=kube_version,
    )
    found = [f"{m['path']}: {m['error']}" for m in report["messages"] if m["severity"] >= _WARNING]
    return found + list(report["errors"] or ())


def schema_error(chart: Path | str, values: Mapping[str, Any]) -> str:
    """Return what Helm tells a user whose values are wrong; empty if they are right."""
    with helm_python.Chart.load(_path(chart)) as loaded:
        try:
            loaded.validate_schema(dict(values))
        except helm_python.HelmValuesError as error:
            return str(error)
    return ""


def values_files(chart: str) -> list[Path]:
    """Return ``tests/charts/values/CHART/*.yaml``, for parametrised tests."""
    return sorted((VALUES / chart).glob("*.yaml"))


def load_values(path: Path) -> dict[str, Any]:
    """Read a file of values; an empty one stands for the defaults."""
    return yaml.safe_load(path.read_text()) or {}


def pods(manifests: Iterable[Manifest]) -> Iterator[Pod]:
    """Yield every pod template, those inside a TrainingRuntime's Jobs too."""
    for manifest in manifests:
        spec = manifest.get("spec") or {}
        match manifest["kind"]:
            case "Pod":
                yield Pod(manifest, manifest["metadata"], spec)
            case "CronJob":
                yield _pod(manifest, spec["jobTemplate"]["spec"]["template"])
            case "TrainingRuntime":
                for job in _jobs(manifest):
                    yield _pod(manifest, job["spec"]["template"])
            case "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job":
                yield _pod(manifest, spec["template"])


def _pod(owner: Manifest, template: Mapping[str, Any]) -> Pod:
    return Pod(owner, template.get("metadata", {}), template["spec"])


def schema_problems(manifests: Iterable[Manifest], versions: Iterable[str] = KUBERNETES) -> list[str]:
    """Return what does not fit Kubernetes' strict schemas, or for other kinds the CRDs of ``tests/charts/crds``.

    A kind that neither knows is a problem too. The Jobs in a TrainingRuntime are checked as Jobs.
    """
    found: set[str] = set()
    for manifest in manifests:
        text = json.dumps(manifest, sort_keys=True)
        for version in versions:
            found.update(f"Kubernetes {version}: {problem}" for problem in _problems(text, version))
    return sorted(found)


@cache  # most value files change a few manifests only
def _problems(text: str, version: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    embedded = [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": manifest["metadata"]["name"]},
            "spec": job["spec"],
        }
        for job in _jobs(manifest)
    ]
    found = []
    for each in (manifest, *embedded):
        validator = _crd(each["apiVersion"], each["kind"]) or _builtin(each["apiVersion"], each["kind"], version)
        if validator is None:
            found.append(
                f"{key(manifest)}: unknown kind {each['apiVersion']} {each['kind']}; add its CRD to {_CRDS.name}/"
            )
            continue
        found += [f"{key(manifest)}: {error.json_path}: {error.message}" for error in validator.iter_errors(each)]
    return tuple(found)


def _jobs(manifest: Manifest) -> list[Mapping[str, Any]]:
    if manifest["kind"] != "TrainingRuntime":
        return []
    value: Any = manifest
    for part in _JOB_PATH:
        value = value[part]
    return [job["template"] for job in value]


@cache
def _builtin(api_version: str, kind: str, version: str) -> Draft202012Validator | None:
    """Return the validator of a kind that Kubernetes itself has, strict: unknown fields are errors."""
    group, _, number = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.split('.')[0]}-{number}" if group else f"{kind.lower()}-{number}"
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    try:
        schema = schema_contents(f"{folder}/{name}.json", version)
    except FileNotFoundError:
        return None
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(folder, version))


@cache
def _definitions(folder: str, version: str) -> Registry:
    return Resource.from_contents(schema_contents(f"{folder}/_definitions.json", version)) @ Registry()


@cache
def _crd(api_version: str, kind: str) -> Draft202012Validator | None:
    """Return the validator of a kind described in ``crds/``, None if it is not."""
    for path in sorted(_CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        if crd["kind"] == kind and api_version in crd["apiVersions"]:
            return Draft202012Validator(crd["schema"])
    return None


def _path(chart: Path | str) -> str:
    return str(chart if isinstance(chart, Path) else CHARTS / chart)
