"""The copy in S3, on a real server, behind a proxy that can be cut as a network is."""

import logging
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from progrpo.errors import StateError, StorageError
from progrpo.manifest import read_manifest
from progrpo.training.state import mirror
from progrpo.training.state.store import StateStore
from s3 import s3_server  # noqa: F401 - a fixture

MIB = 1 << 20


class Proxy:
    """Forwards to a server until it is cut; ``limit`` cuts it after so many bytes towards the server."""

    def __init__(self, port):
        self.target, self.limit, self.forwarded = port, None, 0
        self.connections = set()
        self.listener = None
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self.port = chosen.getsockname()[1]

    def mend(self):
        self.limit = None
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.connections |= {near, far}
                for source, sink, counted in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._forward, args=(source, sink, counted), daemon=True).start()

    def _forward(self, source, sink, counted):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if counted:
                    self.forwarded += len(data)
                    if self.limit is not None and self.forwarded > self.limit:
                        self.cut()
        for connection in (source, sink):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def network(s3_server, monkeypatch):  # noqa: F811
    proxy = Proxy(int(s3_server.endpoint.rpartition(":")[2]))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    proxy.mend()
    yield proxy
    proxy.cut()


@pytest.fixture
def client(s3_server):  # noqa: F811
    return s3_server.client()


@pytest.fixture
def uri(client, request):
    """A prefix of the test's own. Buckets are dear: SeaweedFS sets several volumes aside for each."""
    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket="state")
    return f"s3://state/{request.node.name.replace(' ', '-')}/runs/a"


def fill(text, size=1):
    def write(directory):
        (directory / "model.safetensors").write_bytes(f"model {text} ".encode() * size)
        (directory / "sub").mkdir()
        (directory / "sub" / "state.json").write_text(f"state {text}")

    return write


def save(store, *steps, size=1, **options):
    for step in steps:
        store.save(step, fill(step, size), fingerprint={"seed": 1}, **options)


def keys(client, uri):
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", ())]


def complete_steps(client, uri):
    return sorted(int(key.split("/")[-2][5:12]) for key in keys(client, uri) if key.endswith("/manifest.json"))


def wait_for(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.1)


def test_points_go_to_s3_and_come_back_elsewhere(network, client, uri, tmp_path):
    with StateStore(uri, keep_last=2, scratch=tmp_path / "a") as store:
        assert store.latest() is None
        for step in (10, 20, 30):
            save(store, step)
            wait_for(lambda step=step: step in complete_steps(client, uri))
        assert store.close() == []
    assert complete_steps(client, uri) == [20, 30]
    assert len(keys(client, uri)) == 6  # nothing is left of step 10
    with StateStore(uri + "/", scratch=tmp_path / "b") as store:
        point = store.latest()
        assert (point.step, point.fingerprint) == (30, {"seed": 1})
        assert (point.directory / "model.safetensors").read_text() == "model 30 "
        read_manifest(point.directory, "resume")
        assert not list(point.directory.parent.glob(".download*"))
        assert store.latest().directory == point.directory  # now from the scratch directory
    with StateStore(uri.replace("runs/a", "runs"), scratch=tmp_path / "b") as store:
        assert store.latest() is None


def test_the_best_point_is_kept_in_s3_too(network, client, uri, tmp_path):
    # The first run's points are known to the second from their manifests only.
    for scores in ({10: 0.3, 20: 0.7, 30: 0.5}, {40: None, 50: 0.6}):
        with StateStore(uri, keep_last=1, keep_best=True, scratch=tmp_path / str(min(scores))) as store:
            store.latest()
            for step, score in scores.items():
                save(store, step, score=score)
                wait_for(lambda step=step: step in complete_steps(client, uri))
    assert complete_steps(client, uri) == [20, 50]


def test_large_files_go_in_parts(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        save(store, 1, size=2 * MIB)  # 16 MiB, above the transfer manager's threshold of 8
    with StateStore(uri, scratch=tmp_path / "b") as store:
        assert (store.latest().directory / "model.safetensors").stat().st_size == 16 * MIB


def test_training_does_not_wait_and_a_newer_point_supersedes(network, client, uri, tmp_path, monkeypatch):
    started, may_go_on = threading.Event(), threading.Event()
    put = mirror.S3Mirror._put

    def slow(self, *arguments):
        started.set()
        may_go_on.wait(30)
        put(self, *arguments)

    monkeypatch.setattr(mirror.S3Mirror, "_put", slow)
    seen = set()
    prune = mirror.S3Mirror._prune
    monkeypatch.setattr(
        mirror.S3Mirror, "_prune", lambda self, client, name: (seen.add(str(name)[:12]), prune(self, client, name))
    )
    with StateStore(uri, keep_last=1, scratch=tmp_path) as store:
        save(store, 10)
        assert started.wait(10)
        save(store, 20, 30, 40)  # all return while the upload of step 10 hangs
        assert {path.name[:12] for path in tmp_path.glob("*/step_*")} == {"step_0000010", "step_0000040"}
        may_go_on.set()
    assert seen == {"step_0000010", "step_0000040"}
    assert complete_steps(client, uri) == [40]


def test_s3_down_at_the_start(network, client, uri, tmp_path, caplog):
    network.cut()
    with StateStore(uri, scratch=tmp_path / "a") as store:
        with pytest.raises(StorageError, match="cannot be reached"):
            store.latest()  # there may be points: starting anew would lose them silently
        save(store, 10)
        wait_for(lambda: store.num_upload_failures >= 1)
        save(store, 20)
        assert "cannot copy the state to S3 (failure 1, next try in 1 s)" in caplog.text
        network.mend()
        save(store, 30)  # which tries again at once
        wait_for(lambda: complete_steps(client, uri))
    assert 30 in complete_steps(client, uri)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in caplog.text


def test_s3_down_to_the_end(network, client, uri, tmp_path, caplog):
    network.cut()
    file = tmp_path / "rollouts"
    file.write_text("rollouts")
    with StateStore(uri, scratch=tmp_path / "a") as store:
        save(store, 10)
        store.add_shared(file, "rollouts/1")
        started = time.monotonic()
        assert [name[:12] for name in store.close(timeout_s=1.5)] == ["rollouts/1", "step_0000010"]
        assert time.monotonic() - started < 5
    assert "lacks rollouts/1, step_0000010-" in caplog.text
    with StateStore(uri, scratch=tmp_path / "a") as store:  # the container starts again in its pod
        assert store.latest().step == 10
        assert "since S3 does not answer" in caplog.text
        network.mend()
    assert complete_steps(client, uri) == [10]
    assert any(key.endswith("/runs/a/shared/rollouts/1") for key in keys(client, uri))


def test_s3_cut_in_the_middle_of_an_upload(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        save(store, 10)
        wait_for(lambda: complete_steps(client, uri) == [10])
        network.limit = network.forwarded + 6 * MIB
        save(store, 20, size=2 * MIB)
        wait_for(lambda: store.num_upload_failures >= 1)
        assert complete_steps(client, uri) == [10]
        assert [name[:12] for name in store.close(timeout_s=0.1)] == ["step_0000020"]
    network.mend()
    with StateStore(uri, scratch=tmp_path / "b") as store:
        assert store.latest().step == 10  # on another machine the older one is whole
    with StateStore(uri, scratch=tmp_path / "a") as store:
        assert store.latest().step == 20  # on this one nothing was lost, and it goes up now
    assert complete_steps(client, uri) == [10, 20]


def test_it_goes_on_by_itself_when_s3_is_back(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path) as store:
        network.cut()
        save(store, 10)
        wait_for(lambda: store.num_upload_failures >= 1)
        network.mend()
        wait_for(lambda: complete_steps(client, uri) == [10])


def test_uploaded_files_are_not_sent_again(network, client, uri, tmp_path, monkeypatch):
    put, sent = mirror.S3Mirror._put, []

    def fail_at_the_manifest_once(self, client, file, name):
        sent.append(name.partition("/")[2])
        if sent.count("manifest.json") == 1 and sent[-1] == "manifest.json":
            raise StorageError("the network is gone")
        put(self, client, file, name)

    monkeypatch.setattr(mirror.S3Mirror, "_put", fail_at_the_manifest_once)
    with StateStore(uri, scratch=tmp_path) as store:
        save(store, 10)
    assert sent == ["model.safetensors", "sub/state.json", "manifest.json", "manifest.json"]
    assert complete_steps(client, uri) == [10]


def test_a_download_that_broke_off_goes_on(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        store.save(
            10, lambda directory: [(directory / name).write_bytes(b"x" * 4 * MIB) for name in "abc"], fingerprint={}
        )
    store = StateStore(uri, scratch=tmp_path / "b")
    received = []
    client_of = mirror.s3_client

    @contextmanager
    def cut_before_c(uri, client):
        with client_of(uri) as client:  # a new one each time: it is patched
            download = client.download_file

            def download_file(bucket, key, path):
                received.append(key[-1])
                if key.endswith("/c") and received.count("c") == 1:
                    network.cut()
                return download(bucket, key, path)

            client.download_file = download_file
            yield client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "s3_client", cut_before_c)
        with pytest.raises(StorageError, match="cannot be reached"):
            store.latest()
        network.mend()
        assert store.latest().step == 10
    assert [name for name in received if name in "abc"] == ["a", "b", "c", "c"]  # besides the manifest
    store.close()


@pytest.mark.parametrize("damage", ["cut off", "flipped", "missing", "no manifest", "broken manifest"])
def test_a_damaged_copy_is_skipped(network, client, uri, tmp_path, damage, caplog):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        for step in (10, 20):
            save(store, step)
            wait_for(lambda step=step: step in complete_steps(client, uri))
    bucket = "state"
    newest = next(key for key in keys(client, uri) if "step_0000020" in key).rpartition("/")[0]
    file, manifest = f"{newest}/model.safetensors", f"{newest}/manifest.json"
    if damage == "cut off":
        client.put_object(Bucket=bucket, Key=file, Body=b"model 2")
    elif damage == "flipped":
        client.put_object(Bucket=bucket, Key=file, Body=b"nodel 20 ")
    elif damage == "broken manifest":
        client.put_object(Bucket=bucket, Key=manifest, Body=b"{")
    else:
        client.delete_object(Bucket=bucket, Key=file if damage == "missing" else manifest)
    with StateStore(uri, scratch=tmp_path / "b") as store:
        assert store.latest().step == 10
        assert any("step_0000020" in record.message for record in caplog.records if record.levelno == logging.WARNING)
        save(store, 15)
        assert store.close() == []
    # One without a manifest may be another writer's at work, for an hour.
    assert any("step_0000020" in key for key in keys(client, uri)) == (damage == "no manifest")
    assert complete_steps(client, uri) == [10, 15]


def test_leftovers_of_a_dead_writer_are_removed_in_time(network, client, uri, tmp_path, monkeypatch, caplog):
    prefix = uri.removeprefix("s3://state/")
    client.put_object(Bucket="state", Key=f"{prefix}/step_0000070-0123456789abcdef/model.safetensors", Body=b"half")
    client.put_object(Bucket="state", Key=f"{prefix}/step_of_someone_else", Body=b"not ours")
    with StateStore(uri, scratch=tmp_path) as store:
        assert store.latest() is None  # a first upload that was killed must not stop the next attempt
        assert "which was not uploaded to its end" in caplog.text
        save(store, 10)
        wait_for(lambda: complete_steps(client, uri) == [10])
        monkeypatch.setattr(mirror, "ABANDONED_AFTER_S", -60)
        save(store, 20)
    assert complete_steps(client, uri) == [10, 20]
    assert [key for key in keys(client, uri) if "step_00" not in key or "70-" in key] == [
        f"{prefix}/step_of_someone_else"
    ]


def test_none_valid_is_an_error(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        save(store, 10)
    for key in keys(client, uri):
        if key.endswith("model.safetensors"):
            client.delete_object(Bucket="state", Key=key)
    with (
        StateStore(uri, scratch=tmp_path / "b") as store,
        pytest.raises(StateError, match="none of the 1 resume points"),
    ):
        store.latest()


def test_two_machines_writing_one_prefix(network, client, uri, tmp_path):
    """A pod that dies slowly and its successor: of a step's two points the last counts, and it is whole."""
    with StateStore(uri, scratch=tmp_path / "a") as old, StateStore(uri, scratch=tmp_path / "b") as new:
        for store, text in ((old, "old"), (new, "new")):
            store.save(10, fill(text), fingerprint={})
            wait_for(lambda store=store: not store._mirror.lacking())
            time.sleep(1.1 if store is old else 0)  # S3 dates objects by the second
    with StateStore(uri, scratch=tmp_path / "c") as store:
        point = store.latest()
        assert (point.directory / "model.safetensors").read_text() == "model new "
        assert point.metadata["writer"] == {"host": socket.gethostname(), "pid": os.getpid()}


def test_a_point_saved_again_during_its_upload(network, client, uri, tmp_path, monkeypatch):
    started, may_go_on = threading.Event(), threading.Event()
    put = mirror.S3Mirror._put

    def slow(self, *arguments):
        started.set()
        may_go_on.wait(30)
        put(self, *arguments)

    monkeypatch.setattr(mirror.S3Mirror, "_put", slow)
    with StateStore(uri, scratch=tmp_path / "a") as store:
        store.save(10, fill("periodic"), fingerprint={})
        assert started.wait(10)
        store.save(10, fill("at SIGTERM"), fingerprint={})
        may_go_on.set()
    with StateStore(uri, scratch=tmp_path / "b") as store:
        assert (store.latest().directory / "model.safetensors").read_text() == "model at SIGTERM "


def test_shared_files(network, client, uri, tmp_path):
    with StateStore(uri, scratch=tmp_path / "a") as store:
        for step in (1, 2, 3):
            file = tmp_path / f"step_{step}.parquet"
            file.write_text(f"rollouts {step}")
            store.add_shared(file, f"rollouts/{file.name}")
        save(store, 3)
        wait_for(lambda: complete_steps(client, uri))
        # Before the point's manifest: a point that is there has its rollouts. And what is uploaded takes no room here.
        assert sum("/shared/rollouts/" in key for key in keys(client, uri)) == 3
        assert not list((tmp_path / "a").rglob("*.parquet"))
    network.cut()
    store = StateStore(uri, scratch=tmp_path / "b")
    file.write_text("rollouts 3, once more")
    store.add_shared(file, "rollouts/step_3.parquet")  # waits, and counts all the same
    with pytest.raises(StorageError, match="cannot be reached"):
        store.fetch_shared(tmp_path / "output", lambda name: True)
    network.mend()
    names = store.fetch_shared(tmp_path / "output", lambda name: not name.endswith("_1.parquet"))
    assert names == ["rollouts/step_2.parquet", "rollouts/step_3.parquet"]
    assert (tmp_path / "output" / names[1]).read_text() == "rollouts 3, once more"
    assert store.close() == []


def test_rights_and_buckets(network, tmp_path, monkeypatch, caplog):
    with StateStore("s3://no-such-bucket/run", scratch=tmp_path) as store:
        with pytest.raises(StorageError, match="there is no such bucket"):
            store.latest()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
        save(store, 1)
        wait_for(lambda: store.num_upload_failures >= 1)
        store.close(timeout_s=0.1)
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in caplog.text
    assert "wrong-secret" not in caplog.text


def test_a_temporary_scratch_directory_goes_when_all_is_uploaded(network, client, uri):
    store = StateStore(uri)
    save(store, 1)
    scratch = store._temporary
    assert scratch.is_dir()
    assert store.close() == []
    assert not scratch.exists()
