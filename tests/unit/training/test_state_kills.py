"""Writers killed by SIGKILL: what was acknowledged is there, whole, and the successor starts from it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from repetitions import repetitions
from s3 import s3_server  # noqa: F401 - a fixture

WRITER = Path(__file__).with_name("state_writer.py")


@pytest.fixture
def fast_directory():
    """Where fsync costs nothing, if there is such a place: what a kill leaves does not depend on the disk."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="progrpo-test-", dir=memory if os.access(memory, os.W_OK) else None))
    yield directory
    shutil.rmtree(directory)


def run(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, str(WRITER), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_killed_at_random_times(fast_directory):
    kills = repetitions("kills of a writer of resume points")
    found = run("random", fast_directory, kills)
    assert found["latest"] > 0
    assert found["midway"] >= kills // 5, "the kills hit no writer at work: this tested nothing"


def test_killed_at_every_third_operation_on_the_file_system(fast_directory):  # from a random one on
    assert run("everywhere", fast_directory, 3)["operations"] > 50


def test_killed_while_uploading(s3_server):  # noqa: F811
    s3_server.client().create_bucket(Bucket="killed")
    steps = run("s3", "s3://killed/run", 3, **s3_server.environment)["steps"]
    assert steps[-1] > 0
    keys = [item["Key"] for item in s3_server.client().list_objects_v2(Bucket="killed")["Contents"]]
    assert sum(key.endswith("manifest.json") for key in keys) <= 3  # keep_last 2, and one not yet pruned
