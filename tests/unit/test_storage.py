import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from progrpo.errors import StorageError
from progrpo.storage import finished_directory, local_path, localize, s3_uri
from s3 import s3_server  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def filled(s3_server):  # noqa: F811
    client = s3_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="llama/config.json", Body=b"{}")
    client.put_object(Bucket="models", Key="llama/sub/a.txt", Body=b"a")
    client.put_object(Bucket="models", Key="llama-2/config.json", Body=b"other")
    return client


@pytest.fixture
def bucket(filled, s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return filled


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Credentials for an endpoint that no test server answers."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    return monkeypatch


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_local_paths_are_used_where_they_are(tmp_path):
    (tmp_path / "a b").mkdir()
    assert localize(str(tmp_path), tmp_path / "scratch") == tmp_path
    assert localize(f"file://{tmp_path}/a%20b", tmp_path / "scratch") == tmp_path / "a b"
    assert localize("embedded://countdown-sft", tmp_path / "scratch").joinpath("config.json").is_file()
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("uri", "plain", "path"),
    [
        ("minio://bucket/a/b?endpoint=x&region=y", "s3://bucket/a/b", None),
        ("s3://bucket/a", "s3://bucket/a", None),
        ("gs://bucket/a?b", "gs://bucket/a?b", None),
        ("file:///a%20b", "file:///a%20b", "/a b"),
        ("a b?c", "a b?c", "a b?c"),
    ],
)
def test_what_a_uri_stands_for(uri, plain, path):
    assert s3_uri(uri) == plain
    assert local_path(uri) == (path and Path(path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/does/not/exist", "does not exist"),
        ("file://host/path", "names a host"),
        ("gs://bucket/key", "scheme 'gs' is not supported. Allowed: a local path"),
        ("https://user:hunter2@example.org/x", "scheme 'https' is not supported"),
        ("s3:///key", "names no bucket"),
        ("s3://key:hunter2@bucket/x", "'s3://***@bucket/x' must hold no user or password"),
        ("s3://key:hun/ter2@bucket/x", "'s3://***@bucket/x' must hold no user or password"),
        ("s3://bucket/..", "would leave the download's directory"),
        ("s3://bucket/a/../", "would leave the download's directory"),
        ("~nobody-of-that-name/x", "home directory"),
        ("x" * 5000, "cannot be looked up"),
        ("embedded://nope", "Embedded: countdown-sft"),
        ("embedded://../rewards", "Embedded: countdown-sft"),
    ],
)
def test_other_places_are_refused(uri, message, tmp_path):
    with pytest.raises(StorageError) as error:
        localize(uri, tmp_path)
    assert message in str(error.value)
    assert "hun" not in str(error.value)


def test_object_and_prefix_are_downloaded(bucket, tmp_path):
    assert localize("s3://models/llama/config.json", tmp_path).read_bytes() == b"{}"
    directory = localize("s3://models/llama", tmp_path)
    assert directory == tmp_path / "llama"
    assert contents(directory) == {"config.json": b"{}", "sub/a.txt": b"a"}  # and nothing of llama-2
    assert localize("s3://models/llama/", tmp_path) == directory  # again: replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "llama"]


def test_large_object_comes_in_parts(bucket, tmp_path):
    body = bytes(range(256)) * 4096 * 20  # 20 MiB, above the transfer manager's threshold of 8
    bucket.put_object(Bucket="models", Key="big.bin", Body=body)
    assert localize("s3://models/big.bin", tmp_path).read_bytes() == body


@pytest.mark.parametrize("uri", ["s3://models/nothing", "s3://models/llam", "s3://models/nothing/"])
def test_missing_key(bucket, uri, tmp_path):
    with pytest.raises(StorageError, match="has neither an object nor a prefix"):
        localize(uri, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://no-such-bucket/a", "s3://no-such-bucket"])
def test_missing_bucket(bucket, uri, tmp_path):
    with pytest.raises(StorageError, match="there is no such bucket"):
        localize(uri, tmp_path)


def test_invalid_bucket_name(bucket, tmp_path):
    with pytest.raises(StorageError, match="Invalid bucket name"):
        localize("s3://not a bucket/a", tmp_path)


@pytest.mark.parametrize(("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")])
@pytest.mark.parametrize("uri", ["s3://models/llama", "s3://models/llama/"])
def test_wrong_credentials(bucket, monkeypatch, variable, value, uri, s3_server, tmp_path):  # noqa: F811
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError) as error:
        localize(uri, tmp_path)
    assert s3_server.endpoint in str(error.value)
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(error.value)
    assert s3_server.secret_key not in str(error.value)


def test_our_variables_come_before_those_of_a_platform(bucket, monkeypatch, s3_server, tmp_path):  # noqa: F811
    """In the container of a step both are set: with AWS_* Kubeflow's launcher uploads, and they lead elsewhere."""
    elsewhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    elsewhere |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    for name, value in {**elsewhere, "AWS_REGION": "eu-west-9", "AWS_DEFAULT_REGION": "eu-west-9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        localize("s3://models/llama", tmp_path)
    for name, value in s3_server.own_environment.items():
        monkeypatch.setenv(name, value)
    assert contents(localize("s3://models/llama", tmp_path)) == contents(localize("s3://models/llama/", tmp_path))
    script = "import sys; from progrpo.storage import localize; from pathlib import Path; "
    script += "print(*sorted(p.name for p in localize('s3://models/llama', Path(sys.argv[1])).iterdir()))"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "child")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(path.name for path in (tmp_path / "llama").iterdir())


def test_no_credentials(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no credentials found"):
        localize("s3://models/llama", tmp_path / "scratch")


def test_unreachable_endpoint(aws, tmp_path):
    with socket.socket() as unused:  # bound, but nothing listens
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError) as error:
            localize("s3://models/llama", tmp_path)
    assert all(text in str(error.value) for text in ("s3://models/llama", endpoint, "cannot be reached"))
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["not an endpoint", "http://user:hunter2@bad host"])
def test_malformed_endpoint(aws, tmp_path, endpoint):
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="Invalid endpoint") as error:
        localize("s3://models/llama", tmp_path)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "a//b"])
def test_keys_cannot_leave_the_destination(name, tmp_path, monkeypatch):
    class Client:  # a server that allows such keys; SeaweedFS does not
        meta = SimpleNamespace(endpoint_url="http://store")

        def get_paginator(self, _):
            return self

        def paginate(self, **_):
            return [{"Contents": [{"Key": f"prefix/{name}"}]}]

        def download_file(self, *_):
            raise AssertionError("downloaded")

    monkeypatch.setattr("progrpo.storage._new_client", Client)
    with pytest.raises(StorageError, match="no safe file name"):
        localize("s3://b/prefix", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_directory_appears_only_when_finished(tmp_path):
    output = tmp_path / "artifact"

    def write_half():
        with finished_directory(output) as directory:
            (directory / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list(tmp_path.iterdir()) == []
    output.mkdir()
    with finished_directory(output) as directory:
        (directory / "whole").touch()
    assert [path.name for path in output.iterdir()] == ["whole"]
    with pytest.raises(StorageError, match="not empty"), finished_directory(output):
        pass
