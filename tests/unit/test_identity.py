"""Equal identities mean equal content, on disk and in S3."""

import os
from contextlib import suppress

import pytest

from progrpo import identity
from progrpo.errors import StorageError
from progrpo.identity import identify
from s3 import s3_server  # noqa: F401 - a fixture


@pytest.fixture
def bucket(s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="identities")
    return client


def test_a_file_is_its_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    first = identify(str(path))
    os.utime(path, (1, 1))
    assert identify(str(path)) == identify(f"file://{path}") == first  # not its time
    path.write_text("two")
    assert identify(str(path)).digest != first.digest
    assert first.num_bytes == 3


def test_a_large_file_is_its_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MAX_HASHED", 2)
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    os.utime(path, (1, 1))
    first = identify(str(path))
    assert identify(str(path)) == first
    os.utime(path, (2, 2))
    assert identify(str(path)) != first


def test_a_directory_is_every_file_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    first = identify(str(tmp_path))
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    assert identify(str(tmp_path)).digest != first.digest
    assert identify(str(tmp_path)).num_bytes == first.num_bytes


def test_an_object_is_its_etag_and_a_prefix_is_its_objects(bucket):
    bucket.put_object(Bucket="identities", Key="data/a.jsonl", Body=b"one")
    bucket.put_object(Bucket="identities", Key="data/a.jsonl.bak", Body=b"not asked for")
    first = identify("s3://identities/data/a.jsonl")
    assert first.num_bytes == 3
    assert identify("s3://identities/data/").num_bytes == identify("s3://identities/data").num_bytes == 16
    bucket.put_object(Bucket="identities", Key="data/a.jsonl", Body=b"two")  # as long
    assert identify("s3://identities/data/a.jsonl").digest != first.digest
    with pytest.raises(StorageError, match="neither an object nor a prefix 'nothing'"):
        identify("s3://identities/nothing")


def test_what_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        identify(str(tmp_path / "nowhere"))
