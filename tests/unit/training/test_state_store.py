import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from progrpo.errors import ManifestError, StateError, StorageError
from progrpo.manifest import read_manifest
from progrpo.training.state.points import PointName, points_to_keep
from progrpo.training.state.store import StateStore, check_fingerprint

FINGERPRINT = {"arm": {"name": "grpo"}, "seed": 1, "train": {"steps": 10, "learning_rate": 1e-6}}


def fill(text):
    def write(directory):
        (directory / "model.safetensors").write_text(f"model {text}")
        (directory / "optimizer").mkdir()
        (directory / "optimizer" / "state.json").write_text(f"optimizer {text}")

    return write


def save(store, *steps, **options):
    for step in steps:
        store.save(step, fill(step), fingerprint=FINGERPRINT, **options)


def steps_in(root):
    return sorted(int(path.name[5:12]) for path in root.glob("step_*"))


def point_of(root, step):
    (directory,) = root.glob(f"step_{step:07d}*")
    return directory


def names_in(root):
    return sorted(path.name[:12] for path in root.iterdir())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def store(root):
    with StateStore(str(root), lock_timeout_s=0) as store:
        yield store


def test_a_point_is_an_artifact(store, root):
    assert store.latest() is None
    point = store.save(40, fill("a"), fingerprint=FINGERPRINT | {"betas": (0.9, 0.95)}, score=0.5)
    assert point.directory == point_of(root, 40)
    assert sorted(read_manifest(point.directory, "resume").files) == ["model.safetensors", "optimizer/state.json"]
    found = store.latest()
    assert (found.step, found.directory, found.score) == (40, point.directory, 0.5)
    assert found.fingerprint == FINGERPRINT | {"betas": [0.9, 0.95]}
    assert found.metadata["writer"]["pid"] == os.getpid()
    assert stat_mode(point.directory) == 0o755
    assert names_in(root) == [".lock", "step_0000040"]


def stat_mode(path):
    return path.stat().st_mode & 0o777


def test_uri_may_be_a_file_uri(root):
    with StateStore(f"file://{root}") as store:
        save(store, 1)
    assert steps_in(root) == [1]


@pytest.mark.parametrize("uri", ["gs://bucket/run", "file://host/run", "s3://key:secret@bucket/run", "s3://"])
def test_other_places_are_refused(uri):
    with pytest.raises(StorageError) as error:
        StateStore(uri)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("scores", "keep_last", "keep_best", "kept"),
    [
        ({}, 2, True, set()),
        ({1: None}, 2, True, {1}),
        ({1: None, 2: None, 10: None}, 2, False, {2, 10}),
        ({1: 0.9, 2: 0.1, 3: None, 4: 0.2}, 2, False, {3, 4}),
        ({1: 0.9, 2: 0.1, 3: None, 4: 0.2}, 2, True, {1, 3, 4}),
        ({1: 0.9, 2: 0.9, 3: 0.1, 4: None}, 1, True, {2, 4}),  # of equal ones the newest
    ],
)
def test_points_to_keep(scores, keep_last, keep_best, kept):
    names = [PointName(step, "a", score) for step, score in scores.items()]
    assert {name.step for name in points_to_keep(names, keep_last, keep_best)} == kept


def test_of_the_points_of_one_step_the_newest_counts():
    first, old, new = PointName(1, "a", None), PointName(2, "a", 0.9), PointName(2, "b", 0.5)
    assert points_to_keep([new, first, old], 2, True) == {first, new}


@pytest.mark.parametrize("score", [None, 0.5, 1.0, -2.5e-07, 1e16])
def test_a_name_comes_back_from_its_text(score):
    name = PointName.new(40, score)
    assert PointName.of(str(name)) == name
    assert str(name).startswith("step_0000040-")


@pytest.mark.parametrize("text", ["step_40", "step_of_someone_else", "step_0000040-x", "step_0000040-1-score1.2.3"])
def test_other_names_are_no_points(text):
    assert PointName.of(text) is None


def test_newest_and_best_are_kept(root):
    with StateStore(str(root), keep_last=2, keep_best=True) as store:
        for step, score in [(10, 0.3), (20, 0.7), (30, None), (40, 0.5), (50, float("nan"))]:
            save(store, step, score=score)
        assert steps_in(root) == [20, 40, 50]
        save(store, 60, score=0.8)
        assert steps_in(root) == [50, 60]
        assert store.latest().score == 0.8
    with StateStore(str(root), keep_last=1) as store:
        save(store, 70)
        assert steps_in(root) == [70]


def test_a_step_saved_again_replaces_its_point(store, root):
    save(store, 1)
    store.save(1, fill("again"), fingerprint={})
    assert (store.latest().directory / "model.safetensors").read_text() == "model again"
    assert names_in(root) == [".lock", "step_0000001"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "broken manifest", "renamed"])
def test_a_damaged_point_is_skipped_and_removed_later(store, root, damage, caplog):
    save(store, 10, 20)
    newest = point_of(root, 20)
    file, manifest = newest / "optimizer" / "state.json", newest / "manifest.json"
    data = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "broken manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        newest = newest.rename(root / "step_0000030")
    assert store.latest().step == 10
    assert str(newest) in caplog.text
    save(store, 15)
    assert steps_in(root) == [10, 15]  # newer ones that are damaged do not count as the newest two
    assert store.latest().step == 15


def test_no_valid_point_is_an_error_that_names_each(store, root):
    save(store, 10, 20)
    for step in (10, 20):
        (point_of(root, step) / "model.safetensors").unlink()
    with pytest.raises(StateError) as error:
        store.latest()
    for text in ("none of the 2", "step_0000010", "step_0000020", "model.safetensors", "train.checkpointing.name"):
        assert text in str(error.value)


def test_a_writer_that_fails_leaves_nothing(store, root):
    save(store, 10)

    def fail(directory):
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(20, fail, fingerprint={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(20, fill(20), fingerprint={"learning_rate": float("nan")})
    with pytest.raises(FileNotFoundError):  # a bug of the caller's is not blamed on the disk
        store.save(20, lambda directory: (directory / "no" / "such").touch(), fingerprint={})
    assert names_in(root) == [".lock", "step_0000010"]


@pytest.mark.parametrize("name", ["step_0000010", "step_0000010-0123456789abcdef"])
def test_points_of_the_names_of_version_0_1_are_found(store, root, name):
    save(store, 9, 10)
    point_of(root, 10).rename(root / name)
    assert (store.latest().step, store.latest().directory) == (10, root / name)
    save(store, 11)
    assert steps_in(root) == [10, 11]


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_a_foreign_point_is_refused_key_by_key(store):
    save(store, 10)
    point = store.latest()
    check_fingerprint(point, FINGERPRINT)
    given = {"arm": {"name": "progrpo", "alpha": 0.3}, "train": {"steps": 20, "learning_rate": 1e-6}}
    with pytest.raises(StateError) as error:
        check_fingerprint(point, given, free=["train.steps"])
    assert (
        "arm.alpha was absent and is 0.3 now; "
        'arm.name was "grpo" and is "progrpo" now; seed was 1 and is absent now. Give back' in str(error.value)
    )
    check_fingerprint(point, FINGERPRINT | {"train": {"engine": {"type": "vllm"}}}, free=["train"])
    with pytest.raises(StateError, match="trains"):
        check_fingerprint(point, FINGERPRINT | {"trains": 1}, free=["train"])


def test_equal_values_of_other_types_are_equal(store):
    store.save(1, fill(1), fingerprint={"modules": ("q", "k"), "alpha": 32, "lora": {}})
    check_fingerprint(store.latest(), {"modules": ["q", "k"], "alpha": 32.0, "lora": {}})
    with pytest.raises(StateError, match="lora"):
        check_fingerprint(store.latest(), {"modules": ["q", "k"], "alpha": 32.0, "lora": None})


# --- two writers -----------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_by_name(store, root):
    with pytest.raises(StateError, match=rf"in use by process {os.getpid()} on .*train.checkpointing.name"):
        StateStore(str(root), lock_timeout_s=0.2)
    store.close()
    StateStore(str(root), lock_timeout_s=0).close()


def test_a_worker_of_a_dead_writer_does_not_hold_its_lock(root):
    store = StateStore(str(root))
    worker = multiprocessing.get_context("fork").Process(target=lambda: os.read(reader, 1))
    reader, writer = os.pipe()
    worker.start()
    store.close()
    try:
        StateStore(str(root), lock_timeout_s=5).close()
    finally:
        os.write(writer, b"x")
        worker.join()


def test_a_file_system_without_locks_is_used_with_a_warning(root, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    root.mkdir()
    (root / ".unfinished-step_0000001-x").mkdir()
    with StateStore(str(root)) as store:
        save(store, 2)
    assert "cannot be locked (No locks available)" in caplog.text
    assert (root / ".unfinished-step_0000001-x").is_dir()  # its writer may live


# --- shared files ----------------------------------------------------------------------------------------------------


def test_shared_files_come_back_up_to_the_point(store, root, tmp_path):
    for step in (10, 20, 30):
        file = tmp_path / f"step_{step:05d}.parquet"
        file.write_text(f"rollouts {step}")
        store.add_shared(file, f"rollouts/{file.name}")
    store.add_shared(file, "rollouts/step_00020.parquet")  # again, otherwise: the run went on from step 10
    names = store.fetch_shared(tmp_path / "output", lambda name: int(name[-13:-8]) <= 20)
    assert names == ["rollouts/step_00010.parquet", "rollouts/step_00020.parquet"]
    assert sorted(path.name for path in (tmp_path / "output" / "rollouts").iterdir()) == [name[9:] for name in names]
    assert (tmp_path / "output" / names[0]).read_text() == "rollouts 10"
    assert (tmp_path / "output" / names[1]).read_text() == "rollouts 30"
    assert store.latest() is None
    with pytest.raises(StorageError, match="no safe file name"):
        store.add_shared(file, "../outside")


# --- disks that refuse -----------------------------------------------------------------------------------------------

FULL_DISK = """
import json, sys, os
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file  # torch takes seconds to import
from progrpo.errors import StorageError
from progrpo.training.state.store import StateStore

root = Path(sys.argv[1])
store = StateStore(str(root), keep_last=2)
big = {"a": np.zeros(100_000, np.float32)}  # 400 kB on a disk of 1 MB
found = []

def by_safetensors(directory):
    save_file(big, directory / "model.safetensors")

def by_python(directory):
    (directory / "model.safetensors").write_bytes(b"x" * 400_000)

for step, write in enumerate([by_safetensors, by_safetensors, by_safetensors, by_python], 1):
    try:
        store.save(step, write, fingerprint={})
        found.append("saved")
    except StorageError as error:
        found.append(str(error))
(root.parent / "file").write_bytes(b"x" * 100_000)
try:
    (root.parent / "rollouts").write_bytes(b"x" * 80_000)
    store.add_shared(root.parent / "rollouts", "rollouts")
    found.append("saved")
except StorageError as error:
    found.append(str(error))
names = sorted(path.relative_to(root).parts[0][:12] + "/" + path.name for path in root.rglob("*") if path.is_file())
latest = store.latest().step
(root.parent / "file").unlink()
next(root.glob("step_0000001*/model.safetensors")).unlink()  # someone frees space, and training went on
store.save(5, by_safetensors, fingerprint={})
print(json.dumps({"found": found, "names": names, "latest": latest, "later": store.latest().step}))
"""


def test_a_full_disk(tmp_path, require_all):
    """On a real disk of 1 MB: a tmpfs in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=1m tmpfs {disk} && exec {sys.executable} -c '{FULL_DISK}' {disk / 'state'}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, f"mount -t tmpfs -o size=1m tmpfs {disk}"], capture_output=True).returncode
    ):
        if require_all:
            pytest.fail("no disk can be mounted here: unshare --map-root-user --mount is refused")
        pytest.skip("no disk can be mounted here: unshare --map-root-user --mount is refused")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([*command, script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["found"][:2] == ["saved", "saved"]
    for message in seen["found"][2:]:
        assert "No space left on device" in message
        assert "Free space there, lower train.checkpointing.keep_last" in message
    assert seen["names"] == [
        ".lock/.lock",
        *(f"step_000000{step}/{file}" for step in (1, 2) for file in ("manifest.json", "model.safetensors")),
    ]
    assert (seen["latest"], seen["later"]) == (2, 5)


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_at_fsync(store, root, monkeypatch, number, call):
    """NFS and quotas say so late: two files, their directory, the manifest, the point and the root are synced."""
    save(store, 10)
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match=os.strerror(number)):
        save(store, 20)
    monkeypatch.undo()
    # After the last one the point is in its place already, and whole.
    assert steps_in(root) == ([10, 20] if call == 5 else [10])
    assert not list(root.glob(".u*"))
    save(store, 30)
    assert store.latest().step == 30


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        StateStore(str(tmp_path / "file" / "state"))


def test_a_point_that_cannot_be_read_is_skipped(store, root, monkeypatch, caplog):
    save(store, 10, 20)
    opened = Path.open

    def fail(path, *arguments, **options):
        if "step_0000020" in str(path) and path.suffix == ".safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    assert store.latest().step == 10
    assert "Input/output error" in caplog.text


def test_a_link_out_of_a_point_is_not_followed(store, root, tmp_path):
    save(store, 10)
    file = point_of(root, 10) / "model.safetensors"
    shutil.move(file, tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(StateError, match="outside its directory"):
        store.latest()
    assert issubclass(StateError, ValueError)
    assert not issubclass(StateError, ManifestError)
