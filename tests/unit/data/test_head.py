"""The first rows of a file, of which S3 sends no more than is needed."""

import json
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progrpo.data import head
from progrpo.data.head import read_head
from progrpo.data.read import read_rows
from progrpo.errors import DataError, StorageError
from s3 import s3_server  # noqa: F401 - a fixture

COLUMNS = ("prompt", "answer")
ROWS = [{"prompt": f"question {i}", "answer": str(i), "other": "x" * 50} for i in range(500)]


def write(path):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=50)
    elif path.suffix == ".csv":
        path.write_text("prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def bucket(s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="heads")
    return client


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_first_rows_are_whole(name, place, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "HEAD_BYTES", 4000)
    path = write(tmp_path / name)
    uri = str(path)
    if place == "s3":
        bucket.upload_file(str(path), "heads", name)
        uri = f"s3://heads/{name}"
    found = read_head(uri, tmp_path / "head", columns=COLUMNS)
    rows = [{key: row[key] for key in COLUMNS} for _, row in read_rows(found, name=name, columns=COLUMNS)]
    assert 10 < len(rows) < len(ROWS)
    assert rows == [{key: row[key] for key in COLUMNS} for row in ROWS[: len(rows)]]


def test_parquet_in_s3_is_read_by_ranges(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "HEAD_BYTES", 1000)
    fetched = []
    original = head._Object.readinto
    monkeypatch.setattr(
        head._Object, "readinto", lambda self, buffer: fetched.append(original(self, buffer)) or fetched[-1]
    )
    path = tmp_path / "wide.parquet"
    noise = pa.array([str(i) * 400 for i in range(5000)])
    pq.write_table(
        pa.table({"prompt": noise, "answer": noise}), path, row_group_size=100, compression="none", use_dictionary=False
    )
    bucket.upload_file(str(path), "heads", "wide.parquet")
    read_head("s3://heads/wide.parquet", tmp_path / "head", columns=COLUMNS)
    assert sum(fetched) < path.stat().st_size / 5


def test_what_cannot_be_read_is_named(bucket, tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'solution'"):
        read_head(str(path), tmp_path / "head", columns=("prompt", "solution"))
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="is not a readable parquet file"):
        read_head(str(path), tmp_path / "head", columns=COLUMNS)
    with pytest.raises(StorageError):
        read_head("s3://heads/nowhere.jsonl", tmp_path / "head", columns=COLUMNS)
