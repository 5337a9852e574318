"""What a URI stands for: a local path, ``s3://`` or ``embedded://``; :func:`localize` makes each a local path.

S3 settings come from PROGRPO_S3_ENDPOINT_URL, PROGRPO_S3_REGION, PROGRPO_S3_ACCESS_KEY_ID and
PROGRPO_S3_SECRET_ACCESS_KEY, and for what is not set there from the environment as for every boto3 program:
AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, a profile or an instance role. No
message shows a credential.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from progrpo.errors import ProGRPOError, StorageError
from progrpo.redaction import redact

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
MAX_ATTEMPTS = 2
"""An endpoint that does not answer fails in about ten seconds."""

_OWN_VARIABLES = {
    "PROGRPO_S3_ENDPOINT_URL": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    "PROGRPO_S3_REGION": ("AWS_REGION", "AWS_DEFAULT_REGION"),  # boto3 reads the second alone
    "PROGRPO_S3_ACCESS_KEY_ID": ("AWS_ACCESS_KEY_ID",),
    "PROGRPO_S3_SECRET_ACCESS_KEY": ("AWS_SECRET_ACCESS_KEY",),
}

_ALLOWED = "Allowed: a local path, file:///PATH, s3://BUCKET/KEY or embedded://NAME"


def localize(uri: str, destination: Path) -> Path:
    """Return a local path with the contents of ``uri``.

    Args:
        uri: a local path or ``file://`` (used where it is), ``embedded://NAME`` (data of this package, likewise), or
            ``s3://BUCKET/KEY``, an object or all objects below a prefix.
        destination: directory for what must be downloaded. It comes to lie there under the last part of its key, and
            only once it is whole; an earlier download of that name is replaced.

    Raises:
        StorageError: not found, not reachable, not allowed, or a malformed URI.
    """
    path = local_path(uri)
    if path is not None:
        return _existing(path, uri)
    scheme, _, rest = uri.partition("://")
    if scheme == "embedded":
        return _embedded(rest, uri)
    if scheme == "s3":
        return _download(uri, destination)
    raise StorageError(f"{redact(uri)!r}: scheme {scheme!r} is not supported. {_ALLOWED}.")


def local_path(uri: str) -> Path | None:
    """Return the path that a path or a ``file://`` URI stands for; None if it is of another scheme.

    Raises:
        StorageError: a ``file://`` URI with a host, or without a path.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file":
        return None
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise StorageError(f"{uri!r} names a host. Write file:///PATH with three slashes.")
    return Path(unquote(parts.path))


def s3_uri(uri: str) -> str:
    """Return Kubeflow's ``minio://BUCKET/KEY?SETTINGS`` as the ``s3://BUCKET/KEY`` that it is, other URIs as they are.

    The settings of the store come from the environment here.
    """
    scheme, _, rest = uri.partition("://")
    return f"s3://{rest.partition('?')[0]}" if scheme in ("s3", "minio") else uri


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://BUCKET/KEY``.

    Raises:
        StorageError: no bucket, credentials in the URI, or a key that leads out of its directory.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    # A password may hold a slash, which ends the bucket before its @; of buckets, only an ARN has a colon.
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise StorageError(
            f"{redact(uri)!r} must hold no user or password. Write s3://BUCKET/KEY and give credentials by "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role."
        )
    if not bucket:
        raise StorageError(f"{uri!r} names no bucket. Write s3://BUCKET/KEY.")
    if ".." in key.split("/"):
        raise StorageError(f"{uri!r}: a key with '..' would leave the download's directory. Rename the object.")
    return bucket, key


def make_directory(path: Path, *, name: str | None = None) -> None:
    """Make a directory and its parents, and see that files can be made in it.

    Args:
        path: the directory; may exist.
        name: what the message calls it.

    Raises:
        StorageError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot write to {name or path}: {error.strerror} ({error.filename}). "
            f"Give a directory that you may write to."
        ) from None


@contextmanager
def finished_directory(output: Path) -> Iterator[Path]:
    """Give a temporary directory beside ``output`` that takes its place if, and only if, the block ends well.

    Raises:
        StorageError: ``output`` holds files already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"{output} exists and is not empty. Give another output, or remove it.")
    make_directory(output.parent, name=str(output))
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _existing(path: Path, uri: str) -> Path:
    try:
        path = path.expanduser()
        found = path.exists()
    except (OSError, RuntimeError) as error:  # no access, a name too long, ~ of nobody
        raise StorageError(f"{uri[:200]!r} cannot be looked up: {error}. {_ALLOWED}.") from None
    if not found:
        raise StorageError(f"{uri!r} does not exist (looked for {path.absolute()}). {_ALLOWED}.")
    return path


def _embedded(name: str, uri: str) -> Path:
    root = Path(str(resources.files("progrpo") / "embedded"))
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if name not in names:
        raise StorageError(f"{uri!r} is not part of this package. Embedded: {', '.join(names)}.")
    return root / name


def _download(uri: str, destination: Path) -> Path:
    bucket, key = split_s3_uri(uri)
    name = PurePosixPath(key.rstrip("/")).name or bucket
    target = destination / name
    with s3_client(uri) as client:
        found = find_objects(client, uri)
        destination.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name[:50]}.", dir=destination))
        try:
            part = temporary / "part"
            for item in found:
                path = part
                if item["Key"] != key:
                    below = item["Key"].removeprefix(f"{key.rstrip('/')}/" if key else "")
                    check_file_name(uri, below)
                    path = part / below
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, item["Key"], str(path))
            if target.is_dir():
                shutil.rmtree(target)
            part.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def take_own_variables() -> None:
    """Rename the PROGRPO_S3_ variables of this process to those that boto3 reads; its children have them, too.

    A pod gets ours alone, as Kubeflow's launcher, whose child a step is, takes AWS_ variables for uploads of its own.
    """
    if os.environ.get("PROGRPO_S3_ACCESS_KEY_ID"):
        os.environ.pop("AWS_SESSION_TOKEN", None)  # of the key that ours takes the place of
    for own, names in _OWN_VARIABLES.items():
        if value := os.environ.pop(own, ""):
            os.environ.update(dict.fromkeys(names, value))


def list_objects(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield what S3 says of each object whose key begins with ``prefix``: Key, Size, ETag, LastModified."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", ())


def find_objects(client: Any, uri: str) -> list[dict[str, Any]]:
    """Return what ``s3://BUCKET/KEY`` stands for: the object of that key, else all below it as a prefix.

    Raises:
        StorageError: there is neither.
    """
    bucket, key = split_s3_uri(uri)
    below = f"{key.rstrip('/')}/" if key.strip("/") else ""
    found = {item["Key"]: item for item in list_objects(client, bucket, key) if not item["Key"].endswith("/")}
    objects = [found[key]] if key in found else [found[name] for name in found if name.startswith(below)]
    if not objects:
        raise StorageError(f"{uri!r}: bucket {bucket!r} has neither an object nor a prefix {key!r}. Check the key.")
    return objects


def _new_client() -> Any:
    import boto3
    from botocore.config import Config

    take_own_variables()
    # A session of its own: the default one keeps the credentials it saw first.
    return boto3.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
        ),
    )


def is_file_name(name: str) -> bool:
    """Whether a name is a relative path that stays in its directory."""
    return not ("\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")))


def check_file_name(uri: str, name: str) -> None:
    """Refuse the name of an object below ``uri`` that, as a path, could lead out of a directory.

    Raises:
        StorageError: naming it.
    """
    if not is_file_name(name):
        raise StorageError(f"{uri!r} holds the key {name!r}, which is no safe file name. Rename the object.")


_CREDENTIALS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile or role)"
_CAUSES = {
    "NoSuchBucket": "there is no such bucket. Check the bucket's name and the endpoint",
    "NoSuchKey": "there is no such object. Check the key",
    "AccessDenied": f"access is denied. {_CREDENTIALS} and its right to read, write and list this bucket",
    "403": f"access is denied. {_CREDENTIALS} and its right to read, write and list this bucket",
    "InvalidAccessKeyId": f"the access key is unknown. {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is wrong. {_CREDENTIALS}",
    "ExpiredToken": "the session token has expired. Get a new one",
}


@contextmanager
def s3_client(uri: str, client: Any = None) -> Iterator[Any]:
    """Give a boto3 client; what it raises becomes a StorageError with URI, endpoint, cause and what to do.

    Args:
        uri: what the messages name.
        client: one to use again; absent: a new one.
    """
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as aws

    endpoint = "the endpoint"
    try:
        client = client or _new_client()
        endpoint = redact(client.meta.endpoint_url)
        yield client
    except ProGRPOError:
        raise
    except aws.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        cause = _CAUSES.get(code) or f"the server answered {code}. Check bucket, key and region"
        raise StorageError(f"{uri!r} at {endpoint}: {cause}.") from None
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError):
        raise StorageError(f"{uri!r} at {endpoint}: no credentials found. {_CREDENTIALS}.") from None
    except (aws.HTTPClientError, aws.ConnectionError) as error:
        raise StorageError(
            f"{uri!r}: {endpoint} cannot be reached ({type(error).__name__}). "
            f"Check AWS_ENDPOINT_URL and that the server runs and can be reached from here."
        ) from None
    except (aws.BotoCoreError, Boto3Error, ValueError) as error:
        raise StorageError(f"{uri!r} at {endpoint}: {redact(error)} Check the URI and the AWS settings.") from None
    except OSError as error:
        raise StorageError(
            f"{uri!r}: a local file cannot be read or written: {error}. Free space or give another place."
        ) from None
