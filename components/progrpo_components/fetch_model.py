"""Fetch a checkpoint to serve: from MLflow's model registry or from S3, checked against its manifest.

What the init container of the chart progrpo-serve runs::

    python -m progrpo_components.fetch_model models:/countdown@champion --output /model/checkpoint

MLflow's own settings (MLFLOW_TRACKING_URI and credentials) and boto3's (AWS_ENDPOINT_URL and credentials) say where.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from progrpo.errors import CheckpointError, ConfigError, ManifestError, ProGRPOError, StorageError
from progrpo.manifest import MANIFEST_NAME, read_manifest
from progrpo.storage import finished_directory, localize
from progrpo_components.tracking import describe_error
from progrpo_components.tracking.lineage import CHECKPOINT_TAG
from progrpo_components.tracking.server import server_uri

logger = logging.getLogger(__name__)

_MODEL = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that was fetched.

    Attributes:
        source: URI with the alias resolved: ``models:/NAME/VERSION`` or ``s3://``.
        digest: of its manifest.
    """

    source: str
    digest: str


def fetch_model(uri: str, output: Path) -> Fetched:
    """Fetch a checkpoint artifact and check every file of it.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``s3://BUCKET/KEY``.
        output: directory to make. The registered checkpoint, if it is there already, is kept, since a pod's init
            containers may run again; anything else there is replaced.

    Raises:
        ConfigError: another kind of URI.
        StorageError: not found or not reachable.
        CheckpointError: it is not the checkpoint that was registered.
        ManifestError: no checkpoint artifact, or one whose files differ from its manifest.
    """
    if uri.startswith("s3://"):
        source, registered = uri, None
    elif match := _MODEL.fullmatch(uri):
        source, registered = _resolve(uri, match)
    else:
        raise ConfigError(
            f"{uri!r} cannot be served. Allowed: models:/NAME@ALIAS, models:/NAME/VERSION, s3://BUCKET/KEY."
        )
    if output.exists():
        if registered is not None and _holds(output, registered):
            return Fetched(source, registered)
        shutil.rmtree(output)
    # Beside the output: the temporary folder of a pod is small, and a move within a volume copies nothing. Under one
    # name: what a killed attempt left there would fill the volume.
    scratch = output.with_name(f".{output.name}.fetch")
    shutil.rmtree(scratch, ignore_errors=True)
    with finished_directory(output) as directory, _removed_after(scratch):
        found = localize(source, scratch) if registered is None else _download(source, scratch)
        manifest = read_manifest(found, "checkpoint")
        if registered not in (None, manifest.digest):
            raise CheckpointError(
                f"{source} holds checkpoint {manifest.digest[:12]}, but {registered[:12]} was registered. It was "
                f"changed after its promotion: run the promotion again."
            )
        # Only what was checked, and the manifest: MLflow adds a file, and a bucket may hold others.
        for name in (*manifest.files, MANIFEST_NAME):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (found / name).replace(directory / name)
    return Fetched(source, manifest.digest)


@contextmanager
def _removed_after(directory: Path) -> Iterator[None]:
    directory.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _holds(directory: Path, digest: str) -> bool:
    try:
        return read_manifest(directory, "checkpoint").digest == digest
    except ManifestError:
        return False


def _resolve(uri: str, match: re.Match[str]) -> tuple[str, str]:
    """Return the version's URI, and the digest of the checkpoint that was registered as it."""
    from mlflow import MlflowClient

    name, alias, number = match["name"], match["alias"], match["version"]
    try:
        client = MlflowClient(server_uri())
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except Exception as error:  # mlflow and requests each raise their own
        raise StorageError(
            f"MLflow does not give {uri!r}: {describe_error(error)}. Check MLFLOW_TRACKING_URI, its credentials, and "
            f"that a version has this alias or number."
        ) from None
    digest = version.tags.get(CHECKPOINT_TAG)
    if not digest:
        raise CheckpointError(
            f"{uri!r} is version {version.version}, which was not registered by progrpo (it has no tag "
            f"{CHECKPOINT_TAG}), so nothing says what it should hold. Serve a version that the promote step made."
        )
    return f"models:/{name}/{version.version}", digest


def _download(source: str, directory: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=source, dst_path=str(directory), tracking_uri=server_uri()))
    except Exception as error:  # mlflow, requests and boto3 each raise their own
        raise StorageError(
            f"the files of {source} cannot be fetched: {describe_error(error)}. Check the store's address and "
            f"credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID), and that the files are still there."
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch one checkpoint; 2 with a message where that is not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m progrpo_components.fetch_model", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("uri", help="models:/NAME@ALIAS, models:/NAME/VERSION or s3://BUCKET/KEY")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fetched = fetch_model(parsed.uri, parsed.output)
    except ProGRPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logger.info("fetched %s, checkpoint %s, to %s", fetched.source, fetched.digest, parsed.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
