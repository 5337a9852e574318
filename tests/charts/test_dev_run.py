"""progrpo-dev for real, without Kubernetes: rendered commands, environments, probes and files run on this machine."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import subprocess
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from charts.helm import ROOT, render
from charts.processes import Machine, installed
from postgres import find_postgres
from s3 import free_ports

NAMESPACE, NAME = "team-a", "dev-progrpo-dev"
HOST = f"{NAME}-mlflow"


@dataclass
class Stack:
    """The three servers of a release ``dev``."""

    machine: Machine
    mlflow: Mapping[str, Any]
    postgresql: Mapping[str, Any]
    as_postgres: dict[str, Any]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow['ports'][0]['containerPort']}"

    @property
    def credentials(self) -> tuple[str, str]:
        environment = self.machine.environment(self.mlflow)
        return environment["MLFLOW_AUTH_ADMIN_USERNAME"], environment["MLFLOW_AUTH_ADMIN_PASSWORD"]

    def ask(self, path: str, *, user: tuple[str, str] | None, host: str = "", body: Any = None) -> tuple[int, Any]:
        """Send a request and return status and answer."""
        headers = {"Content-Type": "application/json"}
        if host:
            headers["Host"] = host
        if user:
            headers["Authorization"] = "Basic " + b64encode(":".join(user).encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, None

    def exec(self, words: list[str], workload: str, **options: Any) -> bytes:
        """Do what ``kubectl exec WORKLOAD -- WORDS`` does, and return its output."""
        if workload == f"statefulset/{NAME}-postgresql":
            container, options = self.postgresql, {**options, **self.as_postgres}
        else:
            container = self.mlflow
            assert workload == f"deployment/{NAME}-mlflow"
        done = self.machine.run(container, words, **options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def sql(self, query: str) -> str:
        """Return what psql prints in the database's container."""
        words = ["psql", "--username=mlflow", "--tuples-only", "--no-align", f"--command={query}", "mlflow"]
        return self.exec(words, f"statefulset/{NAME}-postgresql").decode().strip()


@pytest.fixture(scope="module")
def stack(require_all: bool) -> Iterator[Stack]:
    binaries = find_postgres()
    missing = "PostgreSQL (Debian: postgresql)" if binaries is None else ""
    missing = missing or ("Flask-WTF, which MLflow's basic-auth needs" if find_spec("flask_wtf") is None else "")
    if missing:
        (pytest.fail if require_all else pytest.skip)(f"not installed: {missing}")
    assert binaries is not None
    binaries = (binaries / "initdb").resolve().parent  # what is on the PATH may be links to some of the programs
    directory = Path(tempfile.mkdtemp(prefix="progrpo-dev-"))
    mlflow_port, postgres_port, s3_port, master, volume, filer = free_ports(6)
    values = {
        "mlflow": {"port": mlflow_port, "workers": 1},
        "postgresql": {"port": postgres_port},
        "s3": {"port": s3_port},
    }
    release = render("progrpo-dev", values, name="dev", namespace=NAMESPACE)
    names = {
        **{f"{NAME}-postgresql:": "127.0.0.1:", f"{NAME}-s3:": "127.0.0.1:"},
        **{f"http://{HOST}:": "http://127.0.0.1:", "0.0.0.0": "127.0.0.1"},  # noqa: S104
        **{"-master.port=9333": f"-master.port={master}", "-volume.port=8080": f"-volume.port={volume}"},
        **{"-filer.port=8888": f"-filer.port={filer}"},
        **{path: str(directory / path[1:]) for path in ("/var/lib/postgresql/data", "/data", "/tmp", "/etc/progrpo")},
    }
    names["-dir=/data"] = f"-dir={directory}/data"
    programs = {
        **{name: installed(name) for name in ("mlflow", "python", "weed")},
        **{name: str(binaries / name) for name in ("postgres", "pg_isready", "pg_dump", "pg_restore", "psql")},
    }
    machine = Machine(release, directory, names, programs)
    try:
        yield _start(machine, binaries, directory)
    finally:
        machine.close()


def _start(machine: Machine, binaries: Path, directory: Path) -> Stack:
    for name in ("data", "tmp"):
        (directory / name).mkdir()
    # PostgreSQL refuses to run as root, here as in the image.
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    as_postgres = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    directory.chmod(0o711)
    home = directory / "var/lib/postgresql"
    home.mkdir(parents=True)
    if owner:
        os.chown(home, owner.pw_uid, owner.pw_gid)

    pod = machine.pod(f"StatefulSet/{NAME}-postgresql")
    postgresql = dict(pod.spec["containers"][0])
    environment = machine.environment(postgresql)
    # The socket's directory is /var/run/postgresql in the image.
    socket = [{"name": "PGHOST", "value": str(home)}]
    _initialise(binaries, home, environment, as_postgres)
    arguments = [*postgresql["args"], "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
    machine.start({**postgresql, "args": arguments}, cwd="/", **as_postgres)
    postgresql["env"] = [*postgresql["env"], *socket]
    create = [str(binaries / "createdb"), f"--username={environment['POSTGRES_USER']}", environment["POSTGRES_DB"]]
    own = machine.environment(postgresql)
    subprocess.run(create, env=own, check=True, capture_output=True, cwd="/", **as_postgres)

    machine.start(machine.pod(f"StatefulSet/{NAME}-s3").spec["containers"][0])
    pod = machine.pod(f"Deployment/{HOST}")
    machine.write_config_maps(pod)
    (mlflow,) = pod.spec["containers"]
    process = _start_mlflow(machine)
    return Stack(machine, mlflow, postgresql, {**as_postgres, "cwd": "/"}, process)


def _start_mlflow(machine: Machine) -> subprocess.Popen[bytes]:
    """Start the pod: its init containers run at every start, not only on empty stores."""
    pod = machine.pod(f"Deployment/{HOST}")
    for container in pod.spec["initContainers"]:
        done = machine.run(container)
        assert done.returncode == 0, f"{container['name']}: {done.stderr.decode()[-3000:]}"
    return machine.start(pod.spec["containers"][0], cwd=machine.root / "tmp")


def _initialise(binaries: Path, home: Path, environment: Mapping[str, str], as_postgres: dict[str, Any]) -> None:
    """Do what the image's entrypoint does with an empty volume, with the chart's variables."""
    password = home / "password"
    password.write_text(environment["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    command = [str(binaries / "initdb"), f"--username={environment['POSTGRES_USER']}", f"--pwfile={password}"]
    command += [*shlex.split(environment["POSTGRES_INITDB_ARGS"]), "--no-sync", environment["PGDATA"]]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **as_postgres)
    password.unlink()


def test_probes_of_a_running_release_succeed(stack: Stack):
    for workload in (f"StatefulSet/{NAME}-postgresql", f"StatefulSet/{NAME}-s3", f"Deployment/{HOST}"):
        (container,) = stack.machine.pod(workload).spec["containers"]
        options = stack.postgresql if "postgresql" in workload else container
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert stack.machine.probe(options, probe), (workload, probe)


def test_helm_test_passes(stack: Stack):
    (container,) = stack.machine.pod(f"Pod/{NAME}-test").spec["containers"]
    done = stack.machine.run(container)
    assert done.returncode == 0, done.stderr.decode()
    assert b"stored and gave back run" in done.stdout


@pytest.mark.parametrize("suffix", ["", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local"])
def test_clients_may_use_every_name_of_the_service(stack: Stack, suffix: str):
    port = stack.mlflow["ports"][0]["containerPort"]
    for host in (f"{HOST}{suffix}:{port}", f"{HOST}{suffix}"):
        status, _ = stack.ask("/api/2.0/mlflow/experiments/get?experiment_id=0", user=stack.credentials, host=host)
        assert status == 200, host


def test_other_host_names_and_wrong_passwords_are_refused(stack: Stack):
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    user, password = stack.credentials
    assert stack.ask(path, user=(user, password), host="rebound.example")[0] == 403
    assert stack.ask(path, user=None)[0] == 401
    assert stack.ask(path, user=(user, password[:-1]))[0] == 401


def test_s3_refuses_whoever_has_no_key(stack: Stack):
    endpoint = stack.machine.environment(stack.mlflow)["AWS_ENDPOINT_URL"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{endpoint}/mlflow")  # noqa: S310


def test_backup_and_restore_as_documented(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Log a run, save, lose everything, restore, read the run back."""
    from mlflow import MlflowClient

    user, password = stack.credentials
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = MlflowClient(stack.url)
    run_id = client.create_run(client.create_experiment("kept")).info.run_id
    client.log_metric(run_id, "train/reward", 0.75, step=3)
    client.log_text(run_id, "held-out", "evaluation/note.txt")
    assert stack.sql(f"SELECT value FROM metrics WHERE run_uuid = '{run_id}'") == "0.75"  # noqa: S608
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    assert any(key.endswith("evaluation/note.txt") for key in _objects(stack))

    saves, restores = _documented_commands()
    files = {}
    for workload, words, file in saves:
        files[file] = stack.exec(words, workload)

    stack.machine.stop(stack.process)
    stack.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public;")
    _delete_objects(stack)
    assert not _objects(stack)
    (database, bucket) = restores
    _restore(stack, *database, files, tmp_path)
    stack.process = _start_mlflow(stack.machine)
    with pytest.raises(Exception, match=r"(?i)not|500|error"):
        client.download_artifacts(run_id, "evaluation/note.txt", str(tmp_path))
    _restore(stack, *bucket, files, tmp_path)

    run = client.get_run(run_id)
    assert run.data.metrics == {"train/reward": 0.75}
    assert Path(client.download_artifacts(run_id, "evaluation/note.txt", str(tmp_path))).read_text() == "held-out"


def _documented_commands() -> tuple[list[tuple[str, list[str], str]], list[tuple[str, list[str], str]]]:
    """Return what docs/dev-chart.md tells to save and to restore: (workload, command, file)."""
    text = (ROOT / "docs/dev-chart.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found: dict[str, list[tuple[str, list[str], str]]] = {">": [], "<": []}
    for line in lines:
        match = re.fullmatch(rf"kubectl -n {NAMESPACE} exec (?:-i )?(\S+) -- (.*) ([<>]) (\S+)", line)
        if match:
            found[match[3]].append((match[1], shlex.split(match[2]), match[4]))
    assert [len(commands) for commands in found.values()] == [2, 2]
    return found[">"], found["<"]


def _restore(
    stack: Stack, workload: str, words: list[str], file: str, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    saved = tmp_path / file
    saved.write_bytes(files[file])
    with saved.open("rb") as stdin:
        stack.exec(words, workload, stdin=stdin)


def _s3(stack: Stack) -> Any:
    import boto3

    environment = stack.machine.environment(stack.mlflow)
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def _objects(stack: Stack) -> list[str]:
    return [item["Key"] for item in _s3(stack).list_objects_v2(Bucket="mlflow").get("Contents", ())]


def _delete_objects(stack: Stack) -> None:
    for name in _objects(stack):
        _s3(stack).delete_object(Bucket="mlflow", Key=name)
