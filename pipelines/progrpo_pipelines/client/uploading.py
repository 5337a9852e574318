"""Upload a package as a named version of its pipeline; doing it twice does nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import kfp_server_api as kfp

from progrpo import __version__
from progrpo.errors import ConfigError
from progrpo_pipelines.client.api import Api, list_all, name_filter
from progrpo_pipelines.client.errors import ApiError
from progrpo_pipelines.client.package import Package, digest_of, normalized

_DIGEST = "sha256:"


@dataclass(frozen=True)
class Uploaded:
    """A version of a pipeline on the server."""

    pipeline: str
    version: str
    pipeline_id: str
    version_id: str
    action: Literal["created", "unchanged"]


def version_name(package: Package, version: str | None = None) -> str:
    """Return the name that a version gets: ``0.1.0`` for compare.yaml, ``0.1.0-smoke`` for compare-smoke.yaml.

    Without ``version`` the name ends with the digest of the content, so that other content has another name.
    """
    variant = package.path.stem.removeprefix(package.name)
    variant = variant if variant.startswith("-") else ""
    return f"{version}{variant}" if version else f"{__version__}{variant}-{package.digest[:8]}"


def upload(api: Api, package: Package, version: str | None = None) -> Uploaded:
    """Upload ``package`` as a version of the pipeline of its name.

    Args:
        api: the server.
        package: what to upload.
        version: see :func:`version_name`.

    Raises:
        ConfigError: there is a version of that name with other content.
        ApiError: the server refused, or could not be reached.
    """
    version = version_name(package, version)
    pipeline_id = find_pipeline(api, package.name) or _create_pipeline(api, package)
    found = _find_version(api, pipeline_id, version)
    action: Literal["created", "unchanged"] = "unchanged"
    if found is None:
        try:
            found = _upload_version(api, package, pipeline_id, version)
            action = "created"
        except ApiError as error:
            found = _find_version(api, pipeline_id, version) if error.maybe_done or error.status in (400, 409) else None
            if found is None:
                raise
    if not _is_same(found, package):
        raise ConfigError(
            f"pipeline {package.name} has a version {version} with other content. Versions do not change: give another "
            f"--version, or none, which names it after its content."
        )
    return Uploaded(package.name, version, pipeline_id, found.pipeline_version_id, action)


def find_pipeline(api: Api, name: str) -> str | None:
    """Return the id of the pipeline called ``name`` in our namespace, or None."""
    found = list_all(
        api,
        api.pipelines.pipeline_service_list_pipelines,
        "pipelines",
        namespace=api.namespace or "",
        filter=name_filter(name),
    )
    return str(found[0].pipeline_id) if found else None


def _create_pipeline(api: Api, package: Package) -> str:
    body = kfp.V2beta1Pipeline(
        display_name=package.name,
        description=package.spec.get("pipelineInfo", {}).get("description"),
        namespace=api.namespace,
    )
    try:
        return str(api.call(api.pipelines.pipeline_service_create_pipeline, body, again=False).pipeline_id)
    except ApiError as error:  # another job may have made it at the same moment
        found = find_pipeline(api, package.name) if error.maybe_done or error.status in (400, 409) else None
        if found is None:
            raise
        return found


def _upload_version(api: Api, package: Package, pipeline_id: str, version: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="progrpo-upload-") as directory:
        path = Path(directory) / f"{package.name}.yaml"  # kfp_server_api takes nothing but a file
        path.write_bytes(package.content)
        return api.call(
            api.uploads.upload_pipeline_version,
            str(path),
            name=version,
            pipelineid=pipeline_id,
            description=_DIGEST + package.digest,
            again=False,  # a second upload of a name is an error, even of the same content
        )


def _find_version(api: Api, pipeline_id: str, version: str) -> Any:
    found = list_all(
        api,
        api.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id=pipeline_id,
        filter=name_filter(version),
    )
    return found[0] if found else None


def _is_same(found: Any, package: Package) -> bool:
    """Compare by the digest we left in the description; by content where somebody else uploaded it."""
    description = found.description or ""
    if description.startswith(_DIGEST):
        return bool(description == _DIGEST + package.digest)
    spec = found.pipeline_spec or {}
    try:
        return digest_of(normalized(spec.get("pipeline_spec", spec), spec.get("platform_spec", {}))) == package.digest
    except ValueError:  # of a kfp that we do not know
        return False
