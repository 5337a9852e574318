"""Artifacts by the URI that Kubeflow gives them: ``s3://``, ``minio://`` (the same protocol) or a path of a volume."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from progrpo.backoff import Backoff
from progrpo.errors import ManifestError, StorageError
from progrpo.manifest import MANIFEST_NAME, Kind, Manifest, parse_manifest, read_manifest
from progrpo.storage import list_objects, local_path, localize, s3_client, s3_uri, split_s3_uri
from progrpo_components.tracking.spool import PATTERN

logger = logging.getLogger(__name__)

PUBLISH_PATIENCE_S = 1800
MAX_PAUSE_S = 60


def plain_uri(uri: str) -> str:
    """Return a URI as :mod:`progrpo.storage` takes it.

    Raises:
        StorageError: a scheme that is neither S3 nor a path.
    """
    plain = s3_uri(uri)
    if not plain.startswith("s3://") and local_path(plain) is None:
        raise StorageError(
            f"{uri!r}: the pods of a TrainJob read and write s3://, minio:// and paths of a volume, not "
            f"{uri.partition('://')[0]}://. Give the pipeline a pipeline root on an S3-compatible store."
        )
    return plain


def fetch(uri: str, kind: Kind, destination: Path) -> Path:
    """Return a local directory with an artifact; its files are compared with the manifest by who reads them.

    Raises:
        ManifestError: it is not a finished artifact of that kind.
        StorageError: it cannot be read.
    """
    directory = localize(plain_uri(uri), destination)
    read_manifest(directory, kind, verify=False)
    return directory


def published(uri: str, kind: Kind) -> Manifest | None:
    """Return the manifest of a finished artifact, each file of it there with its size; None if there is none.

    Raises:
        ManifestError: there is a manifest, but a file is missing or cut off.
        StorageError: the store cannot be read.
    """
    path = local_path(uri)
    if path is not None:
        if not (path / MANIFEST_NAME).is_file():
            return None
        manifest = read_manifest(path, kind, verify=False)
        sizes = {name: (path / name).stat().st_size for name in manifest.files if (path / name).is_file()}
    else:
        found = _read_remote(plain_uri(uri), kind)
        if found is None:
            return None
        manifest, sizes = found
    for name, entry in manifest.files.items():
        if sizes.get(name) != entry.size:
            given = f"has {sizes[name]} bytes" if name in sizes else "is missing"
            raise ManifestError(f"{uri}/{name} {given}; the manifest lists {entry.size} bytes. Run the step again.")
    return manifest


def publish(directory: Path, uri: str, *, patience_s: float = PUBLISH_PATIENCE_S) -> None:
    """Upload a finished artifact, its manifest last.

    A store that is away is tried again: days of training are not lost to it, and each file is uploaded once.

    Args:
        directory: with a manifest.
        uri: ``s3://BUCKET/PREFIX`` or ``minio://BUCKET/PREFIX``.
        patience_s: how long to try while nothing gets through.

    Raises:
        StorageError: the store refuses, or was away for longer.
    """
    uri = plain_uri(uri)
    bucket, key = split_s3_uri(uri)
    prefix = f"{key.strip('/')}/"
    waiting = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
    # A spool is what MLflow lacks: `progrpo track sync` delivers it from the artifact.
    waiting = [
        name
        for name in waiting
        if name != MANIFEST_NAME and (not Path(name).name.startswith(".") or Path(name).match(PATTERN))
    ]
    waiting.append(MANIFEST_NAME)
    backoff = Backoff(longest_s=MAX_PAUSE_S, patience_s=patience_s)
    while waiting:
        try:
            with s3_client(uri) as client:
                while waiting:
                    client.upload_file(str(directory / waiting[0]), bucket, prefix + waiting[0])
                    waiting.pop(0)
                    backoff.reset()
        except StorageError as error:
            if (pause_s := backoff.pause_s()) is None:
                raise
            logger.warning("the training run is not uploaded yet, trying again in %.0f s: %s", pause_s, error)
            time.sleep(pause_s)


def _read_remote(uri: str, kind: Kind) -> tuple[Manifest, dict[str, int]] | None:
    bucket, key = split_s3_uri(uri)
    prefix = f"{key.strip('/')}/"
    with s3_client(uri) as client:
        try:
            text = client.get_object(Bucket=bucket, Key=prefix + MANIFEST_NAME)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        sizes = {item["Key"].removeprefix(prefix): item["Size"] for item in list_objects(client, bucket, prefix)}
    return parse_manifest(text, kind, where=uri), sizes
