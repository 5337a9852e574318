"""A checkpoint in S3 is described without its tensors being fetched; against a real S3 server."""

import shutil
from contextlib import suppress

import pytest

from progrpo.checkpoints.architecture import read_architecture
from progrpo.checkpoints.loading import load_tokenizer
from progrpo.checkpoints.peek import peek
from progrpo.errors import CheckpointError, StorageError
from s3 import s3_server  # noqa: F401 - a fixture


@pytest.fixture
def bucket(s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="peeked")
    return client


def test_it_reads_like_the_original_and_takes_no_room(bucket, embedded_checkpoint, tmp_path):
    for path in embedded_checkpoint.iterdir():
        bucket.upload_file(str(path), "peeked", f"models/tiny/{path.name}")
    bucket.put_object(Bucket="peeked", Key="models/tiny/pytorch_model.bin", Body=b"pickle")
    found = peek("s3://peeked/models/tiny", tmp_path / "copy")
    assert read_architecture(found) == read_architecture(embedded_checkpoint)
    assert load_tokenizer(found).get_vocab() == load_tokenizer(embedded_checkpoint).get_vocab()
    copy, original = found / "model.safetensors", embedded_checkpoint / "model.safetensors"
    assert copy.stat().st_size == original.stat().st_size
    assert copy.stat().st_blocks * 512 < original.stat().st_size / 10
    assert (found / "pytorch_model.bin").read_bytes() == bytes(6)  # named, not fetched


@pytest.mark.parametrize("body", [b"", b"short", b"\xff" * 64], ids=["empty", "cut off", "no safetensors"])
def test_weights_that_are_none_are_found_when_read(bucket, embedded_checkpoint, tmp_path, body):
    shutil.copy(embedded_checkpoint / "config.json", tmp_path)
    bucket.upload_file(str(tmp_path / "config.json"), "peeked", "broken/config.json")
    bucket.put_object(Bucket="peeked", Key="broken/model.safetensors", Body=body)
    with pytest.raises(CheckpointError, match="cut off or not a safetensors file"):
        read_architecture(peek("s3://peeked/broken/", tmp_path / "copy"))


def test_nothing_there(bucket, tmp_path):
    with pytest.raises(StorageError, match="no prefix 'nowhere' with files"):
        peek("s3://peeked/nowhere", tmp_path / "copy")


def test_a_local_checkpoint_is_used_where_it_lies(embedded_checkpoint, tmp_path):
    assert peek(str(embedded_checkpoint), tmp_path) == embedded_checkpoint
