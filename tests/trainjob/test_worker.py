"""Two nodes for real: two worker processes that meet over TCP, with SeaweedFS as store, against one node.

Both run on this machine's loopback; no cluster was used.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from progrpo.config import TrainConfig
from progrpo.errors import ManifestError
from progrpo.manifest import MANIFEST_NAME, read_manifest, write_manifest
from progrpo.metrics import read_jsonl
from progrpo.storage import localize, s3_client
from progrpo.training.launch import launch
from progrpo_components.trainjob.artifacts import publish, published
from progrpo_components.trainjob.job import error_of_termination
from progrpo_components.trainjob.worker import main
from s3 import free_ports, s3_server  # noqa: F401 - a fixture

TRAIN = {
    "steps": 6,
    "prompts_per_step": 4,
    "group_size": 4,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 2,
    "distributed": {"num_processes": 2},
}
DURATIONS = ("train/step_s", "perf/")
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def store(s3_server, tiny_dataset, embedded_checkpoint):  # noqa: F811
    """Put the inputs into a bucket, as Kubeflow does; give its name."""
    bucket = s3_server.new_bucket("pipelines")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        publish(tiny_dataset, f"s3://{bucket}/v2/dataset")
        publish(embedded_checkpoint, f"s3://{bucket}/v2/checkpoint")
        yield bucket


@pytest.fixture(scope="module")
def store_job(make_job, store):
    """Make a job whose inputs and output lie in the bucket."""

    def make(name, **train):
        uris = {"dataset": f"s3://{store}/v2/dataset", "checkpoint": f"s3://{store}/v2/checkpoint"}
        return make_job(
            **uris, output=f"s3://{store}/v2/{name}/training", run_id=name, train=TRAIN | train, tracking=None
        )

    return make


@pytest.fixture(scope="module")
def one_node(python, store_job, tiny_dataset, embedded_checkpoint, tmp_path_factory):
    """The same run with both ranks on one node."""
    job, output = store_job("one-node"), tmp_path_factory.mktemp("one") / "training"
    train = TrainConfig.model_validate(TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)  # of the ranks
        launch(job.run.arm, job.run.seed, train, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
    return output


def store_of_pods():
    """The store as pods know it; those of its names that a platform may have set there lead elsewhere."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    ours = {name.replace("AWS_", "PROGRPO_S3_"): os.environ[name] for name in names}
    return {**dict.fromkeys(names, "elsewhere"), **ours}


class Nodes:
    """The workers of a job, each with the environment that Kubeflow Trainer gives its pod, and a disk of its own."""

    def __init__(self, python, job, directory):
        (port,) = free_ports(1)
        self.disks = [directory / f"node{rank}" for rank in (0, 1)]
        self.processes = []
        for rank, disk in enumerate(self.disks):
            disk.mkdir(parents=True)
            torchrun = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(rank)}
            meeting = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
            command = [python, "-m", "progrpo_components.trainjob.worker", "--job", job.as_argument()]
            environment = {**os.environ, **store_of_pods(), **torchrun, **meeting, "TMPDIR": str(disk)}
            with (directory / f"node{rank}.log").open("wb") as log:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        self._logs = [directory / f"node{rank}.log" for rank in (0, 1)]

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self):
        return [process.wait(TIMEOUT_S) for process in self.processes]

    def logs(self):
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in self._logs)


def metrics_of(training):
    return [
        {key: value for key, value in row.items() if not key.startswith(DURATIONS)}
        for row in read_jsonl(training / "metrics.jsonl")
    ]


def check_equal(training, expected):
    """The same metrics, rollouts and weights, to 1e-4."""
    manifest = read_manifest(training, "training")
    names = {name for name in manifest.files if name != "metrics.jsonl"}
    assert names == {name for name in read_manifest(expected, "training").files if name != "metrics.jsonl"}
    rows, expected_rows = metrics_of(training), metrics_of(expected)
    assert len(rows) == len(expected_rows) == TRAIN["steps"]
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    weights, wanted = (load_file(path / "checkpoint" / "model.safetensors") for path in (training, expected))
    assert_close(weights, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_nodes_train_what_one_does(python, store, store_job, one_node, tmp_path):
    job = store_job("two-nodes")
    with Nodes(python, job, tmp_path) as nodes:
        assert nodes.wait() == [0, 0], nodes.logs()
        assert [list(disk.glob("progrpo-node-*")) for disk in nodes.disks] == [[], []]
    check_equal(localize(job.output, tmp_path / "result"), one_node)


@pytest.mark.slow
def test_nodes_that_are_stopped_or_lost_go_on(python, s3_server, store, store_job, one_node, tmp_path):  # noqa: F811
    """A node is drained, then one is lost; each time JobSet starts all again, and they go on from the point in S3."""
    job = store_job("restarted", checkpointing={"uri": f"s3://{store}/state", "every": 1})
    client = s3_server.client()

    def has_a_point(_nodes):
        found = client.list_objects_v2(Bucket=store, Prefix="state/").get("Contents", ())
        return any("step_" in item["Key"] and item["Key"].endswith(MANIFEST_NAME) for item in found)

    def goes_on(nodes):
        return "going on after step" in nodes.logs()

    # Told to stop, the ranks of all nodes finish their step and save it together; from a lost node they cannot.
    for attempt, (ready, signum, codes) in enumerate(
        [(has_a_point, signal.SIGTERM, [143, 143]), (goes_on, signal.SIGKILL, [1, -signal.SIGKILL])]
    ):
        with Nodes(python, job, tmp_path / str(attempt)) as nodes:
            deadline = time.monotonic() + TIMEOUT_S
            while not ready(nodes):
                assert time.monotonic() < deadline, nodes.logs()
                time.sleep(0.02)
            nodes.processes[1].send_signal(signum)
            assert nodes.wait() == codes, nodes.logs()
        assert published(job.output, "training") is None
    with Nodes(python, job, tmp_path / "last") as nodes:
        assert nodes.wait() == [0, 0], nodes.logs()
        assert goes_on(nodes)
    check_equal(localize(job.output, tmp_path / "result"), one_node)


@pytest.fixture
def pod(monkeypatch):
    """The environment of the first pod of two."""
    for name, value in {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_run_that_is_finished_is_left_alone(store, store_job, pod, tmp_path, caplog):
    job = store_job("finished")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "metrics.jsonl").write_text("{}\n")
    write_manifest(tmp_path / "training", "training")
    publish(tmp_path / "training", job.output)
    caplog.set_level(logging.INFO)
    assert main(["--job", job.as_argument()], termination_log=tmp_path / "log") == 0
    assert "finished already" in caplog.text
    assert not (tmp_path / "log").exists()


def fails(job, tmp_path, **arguments):
    text = job if isinstance(job, str) else job.as_argument()
    code = main(["--job", text], termination_log=tmp_path / "log", **arguments)
    error = error_of_termination((tmp_path / "log").read_text())
    return code, type(error).__name__, str(error)


def test_what_fails_is_left_for_the_launcher(store, store_job, pod, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    missing = store_job("x").model_copy(update={"checkpoint": f"s3://{store}/v2/none"})
    code, name, message = fails(missing, tmp_path)
    assert (code, name) == (1, "StorageError"), "a store may come back: the pods are restarted"
    assert "has neither an object nor a prefix" in message
    swapped = store_job("x").model_copy(update={"checkpoint": f"s3://{store}/v2/dataset"})
    code, name, message = fails(swapped, tmp_path)
    assert (code, name) == (2, "ManifestError"), "no restart mends it"
    assert "a checkpoint artifact is needed" in message
    monkeypatch.setenv("PET_NPROC_PER_NODE", "4")
    code, name, message = fails(store_job("x"), tmp_path)
    assert (code, name) == (2, "ConfigError")
    assert "num_processes is 2, but 2 nodes with 4 processes each" in message
    monkeypatch.setenv("PET_NPROC_PER_NODE", "auto")  # what Trainer sets where the TrainJob leaves it open
    code, name, message = fails(store_job("x"), tmp_path)
    assert (code, name) == (2, "ConfigError")
    assert "PET_NPROC_PER_NODE=auto" in message
    assert "Give spec.trainer.numProcPerNode" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [("{}", "The launcher and the training image must have the same version"), ("{", r"is not a worker's job")],
)
def test_another_versions_job_is_explained(tmp_path, text, told):
    code, name, message = fails(text, tmp_path)
    assert (code, name) == (2, "ConfigError")
    assert told in message


def test_outside_a_trainjob_it_says_what_is_missing(store_job, tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PET_"):
            monkeypatch.delenv(name)
    code, name, message = fails(store_job("x"), tmp_path)
    assert (code, name) == (2, "ConfigError")
    assert "PET_NNODES" in message
    assert "no pod of a TrainJob" in message


def test_a_store_that_is_away_is_tried_again(store, tiny_dataset, tmp_path, monkeypatch):
    """The upload of days of training: the server is unreachable at first, and comes back."""
    calls = []
    right = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")

    def pause(seconds):
        calls.append(seconds)
        monkeypatch.setenv("AWS_ENDPOINT_URL", right)

    monkeypatch.setattr("progrpo_components.trainjob.artifacts.time.sleep", pause)
    publish(tiny_dataset, f"s3://{store}/v2/later")
    assert calls
    found = published(f"s3://{store}/v2/later", "dataset")
    assert found == read_manifest(tiny_dataset, "dataset")


def test_the_manifest_is_uploaded_last(store, tiny_dataset, monkeypatch):
    """The real client, which is listened to."""
    keys = []

    @contextmanager
    def listened(uri):
        with s3_client(uri) as client:
            client.meta.events.register("before-call.s3.PutObject", lambda params, **_: keys.append(params["url_path"]))
            yield client

    monkeypatch.setattr("progrpo_components.trainjob.artifacts.s3_client", listened)
    publish(tiny_dataset, f"s3://{store}/v2/order")
    assert len(keys) == len(set(keys)) == len(read_manifest(tiny_dataset, "dataset").files) + 1
    assert keys[-1].endswith(MANIFEST_NAME)


def test_an_upload_that_was_cut_off_is_no_artifact(s3_server, store, tiny_dataset):  # noqa: F811
    publish(tiny_dataset, f"s3://{store}/v2/cut")
    client = s3_server.client()
    client.put_object(Bucket=store, Key="v2/cut/train.parquet", Body=b"half")
    with pytest.raises(ManifestError, match=r"train.parquet has 4 bytes; the manifest lists"):
        published(f"s3://{store}/v2/cut", "dataset")
    client.delete_object(Bucket=store, Key=f"v2/cut/{MANIFEST_NAME}")
    assert published(f"s3://{store}/v2/cut", "dataset") is None
