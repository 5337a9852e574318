"""``progrpo doctor`` on what is well, what is wrong, and what is not there.

MLflow and S3 are real servers. Kubernetes, Kubeflow Pipelines and the sandbox are stand-ins on loopback; no cluster was
there.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from mlflow_server import running_mlflow
from progrpo_pipelines import cli
from progrpo_pipelines.doctor.cluster import RIGHTS
from s3 import s3_server  # noqa: F401 - a fixture

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
DEFAULTS = "/api/v1/namespaces/team/configmaps/progrpo-defaults"
TOKEN = "kubernetes-secret-token"


class Kubernetes:
    """A stand-in of the Kubernetes API: fixed answers by path, rights by (resource, verb)."""

    def __init__(self) -> None:
        self.objects = {
            "/version": {"gitVersion": "v1.33.1"},
            TRAINER: {"resources": [{"name": "trainjobs"}, {"name": "trainingruntimes"}]},
            f"{TRAINER}/namespaces/team/trainingruntimes/progrpo-torch-1": {"kind": "TrainingRuntime"},
            DEFAULTS: {"data": {"PROGRPO_TRAINING_RUNTIME": "progrpo-torch-1"}},
            "/api/v1/nodes": {"items": [node("a", "8", pool="h100"), node("b", "8", pool="h100"), node("cpu", None)]},
            "/api/v1/namespaces/team/configmaps/progrpo-gpu-pools": {"data": {"h100": pool("h100", 8)}},
        }
        self.statuses: dict[str, int] = {}
        self.refused: set[tuple[str, str]] = set()
        self.reviews: list[dict] = []

    def answer(self, method: str, path: str, body: dict, token: str) -> tuple[int, dict]:
        if token != f"Bearer {TOKEN}":
            return 401, {}
        if path in self.statuses:
            return self.statuses[path], {}
        if method == "POST":
            assert (body["kind"], body["apiVersion"]) == ("SelfSubjectAccessReview", "authorization.k8s.io/v1")
            asked = body["spec"]["resourceAttributes"]
            assert asked["namespace"] == "team"
            self.reviews.append(asked)
            name = f"{asked['resource']}/{asked['subresource']}".rstrip("/")
            return 201, body | {"status": {"allowed": (name, asked["verb"]) not in self.refused}}
        return (200, self.objects[path]) if path in self.objects else (404, {})


def node(name: str, gpus: str | None, **labels: str) -> dict:
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": gpus or "0"}}}


def pool(name: str, count: int) -> str:
    return yaml.safe_dump({"gpu_count": count, "gpu_type": "nvidia.com/gpu", "placement_node_selector": {"pool": name}})


@contextmanager
def serving(answer):
    """Answer requests on a free port of 127.0.0.1 by ``answer(method, path, body, authorization)``."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, content = answer(self.command, self.path, body, self.headers.get("Authorization"))
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _bare(recorder, monkeypatch, tmp_path):
    """Nothing is set up but what a test sets up."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE",
                 "MLFLOW_TRACKING_URI", "PROGRPO_SANDBOX_URL", "PROGRPO_S3_URI", "KUBECONFIG"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def doctor(capsys):
    """Call ``progrpo doctor --json`` and return its exit code and its checks by name."""

    def call(*arguments: str) -> tuple[int, dict[str, dict]]:
        with pytest.raises(SystemExit) as exited:
            cli.main(["doctor", "--json", *arguments])
        out = capsys.readouterr().out
        return int(exited.value.code or 0), {check["name"]: check for check in json.loads(out)} if out else {}

    return call


@pytest.fixture
def kubernetes(monkeypatch, tmp_path):
    made = Kubernetes()
    with serving(made.answer) as url:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "team"}}],
        }  # fmt: skip
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(file))
        yield made


def test_nothing_set_up_is_said_and_is_no_success(doctor):
    code, checks = doctor()
    assert code == 1
    assert {check["state"] for check in checks.values()} == {"skipped"}


class TestPipelines:
    def test_well(self, doctor, recorder, progrpo, package_path):
        progrpo("upload", package_path)
        code, checks = doctor("--endpoint", recorder.url)
        assert code == 0
        assert checks["Kubeflow Pipelines"]["detail"] == f"{recorder.url}, version 2.17.0"
        assert checks["Pipelines"]["detail"] == "evaluate uploaded on this server"

    def test_nothing_uploaded(self, doctor, recorder):
        code, checks = doctor("--endpoint", recorder.url)
        assert code == 0
        assert checks["Pipelines"]["state"] == "warning"
        assert checks["Pipelines"]["mend"].startswith("progrpo upload")

    @pytest.mark.parametrize(
        ("tag", "state", "said"), [("2.16.1", "ok", "--backend 2.16"), ("2.4.0", "failed", "2.4.0"), ("x", "ok", "x")]
    )
    def test_version(self, doctor, recorder, tag, state, said):
        recorder.tag_name = tag
        _, checks = doctor("--endpoint", recorder.url)
        assert checks["Kubeflow Pipelines"]["state"] == state
        assert said in checks["Kubeflow Pipelines"]["detail"]

    def test_no_token(self, doctor, recorder):
        recorder.token = "secret"
        code, checks = doctor("--endpoint", recorder.url)
        assert code == 1
        assert "--token-file" in checks["Kubeflow Pipelines"]["mend"]

    def test_several_users_need_a_namespace(self, doctor, recorder):
        recorder.multi_user = True
        code, checks = doctor("--endpoint", recorder.url)
        assert code == 1
        assert "--namespace" in checks["Pipelines"]["mend"]
        assert doctor("--endpoint", recorder.url, "--namespace", "team")[0] == 0

    def test_nobody_there(self, doctor):
        code, checks = doctor("--endpoint", "http://127.0.0.1:9")
        assert code == 1
        assert "nothing listens there" in checks["Kubeflow Pipelines"]["detail"]


class TestObjectStore:
    @pytest.fixture(autouse=True)
    def _environment(self, s3_server, monkeypatch):  # noqa: F811
        for key, value in s3_server.environment.items():
            monkeypatch.setenv(key, value)

    def test_keys_alone(self, doctor):
        code, checks = doctor()
        assert (code, checks["Object store"]["state"]) == (0, "ok")

    def test_write_leaves_nothing(self, doctor, s3_server):  # noqa: F811
        code, checks = doctor("--s3", "s3://ready/team", "--write")
        assert code == 0, checks
        assert "written, read and deleted" in checks["Object store"]["detail"]
        keys = [item["Key"] for item in s3_server.client().list_objects_v2(Bucket="ready").get("Contents", ())]
        assert not any("doctor" in key for key in keys)

    def test_without_write_nothing_is_written(self, doctor):
        assert "written" not in doctor("--s3", "s3://ready/team")[1]["Object store"]["detail"]

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("AWS_SECRET_ACCESS_KEY", "wrong", "secret key is wrong"),
            ("AWS_ACCESS_KEY_ID", "nobody", "access key is unknown"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "127.0.0.1:9"),
        ],
    )
    def test_wrong(self, doctor, monkeypatch, variable, value, said):
        monkeypatch.setenv(variable, value)
        for arguments in ((), ("--s3", "s3://ready/team")):
            code, checks = doctor(*arguments)
            assert code == 1
            assert said in checks["Object store"]["detail"]
            assert checks["Object store"]["mend"]

    def test_with_the_variables_of_the_charts_check(self, doctor, s3_server, monkeypatch):  # noqa: F811
        for name in (*s3_server.environment, "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, "the platform's")
        for name, value in s3_server.own_environment.items():
            monkeypatch.setenv(name, value)
        code, checks = doctor()
        assert (code, checks["Object store"]["state"]) == (0, "ok"), checks

    def test_no_such_bucket(self, doctor):
        code, checks = doctor("--s3", "s3://nowhere-at-all/x")
        assert (code, "no such bucket" in checks["Object store"]["detail"]) == (1, True)

    def test_no_place(self, doctor):
        code, checks = doctor("--s3", "/data")
        assert (code, "is no s3://BUCKET/PREFIX" in checks["Object store"]["detail"]) == (1, True)


class TestMLflow:
    @pytest.mark.slow
    def test_real_server(self, doctor, monkeypatch, tmp_path):
        with running_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts")) as server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
            code, checks = doctor()
            assert code == 0, checks
            assert server.uri in checks["MLflow"]["detail"]

    def test_wrong_password(self, doctor, monkeypatch):
        with serving(lambda *request: (401, "You are not authenticated.")) as url:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
            code, checks = doctor()
        assert code == 1
        assert "MLFLOW_TRACKING_PASSWORD" in checks["MLflow"]["mend"]
        assert "not-the-password" not in json.dumps(checks)

    def test_nobody_there(self, doctor, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:9")
        code, checks = doctor()
        assert (code, checks["MLflow"]["state"]) == (1, "failed")
        assert "hidden" not in json.dumps(checks)


class TestSandbox:
    @pytest.mark.parametrize(
        ("status", "content", "state"),
        [
            (200, {"status": "ok", "isolation": "full"}, "ok"),
            (200, {"status": "starting"}, "failed"),
            (503, {}, "failed"),
        ],
    )
    def test_health(self, doctor, monkeypatch, status, content, state):
        def answer(method, path, body, token):
            return (status, content) if path == "/healthz" else (404, {})

        with serving(answer) as url:
            monkeypatch.setenv("PROGRPO_SANDBOX_URL", url)
            assert doctor()[1]["Code sandbox"]["state"] == state

    def test_nobody_there(self, doctor, monkeypatch):
        monkeypatch.setenv("PROGRPO_SANDBOX_URL", "http://127.0.0.1:9")
        code, checks = doctor()
        assert (code, checks["Code sandbox"]["state"]) == (1, "failed")


class TestKubernetes:
    def test_well(self, doctor, kubernetes):
        code, checks = doctor()
        assert code == 0, checks
        assert checks["Kubernetes"]["detail"] == "version v1.33.1, namespace team"
        assert checks["Training runtime"]["detail"] == "progrpo-torch-1"
        assert checks["GPU nodes"]["detail"] == "16 nvidia.com/gpu on 2 nodes"
        assert checks["GPU pool h100"]["detail"] == "2 nodes with 8 nvidia.com/gpu or more"

    def test_rights_asked_for_are_the_documented_ones(self, doctor, kubernetes):
        """Those of docs/trainjob.md, and whether we may look at what the last two are about."""
        doctor()
        keys = ("group", "resource", "subresource", "verb")
        assert {tuple(review[key] for key in keys) for review in kubernetes.reviews} == {
            *(("trainer.kubeflow.org", "trainjobs", "", verb) for verb in ("create", "get", "patch", "delete")),
            *(("", "pods", "", verb) for verb in ("get", "list")),
            ("", "pods", "log", "get"),
            ("", "events", "", "list"),
            ("trainer.kubeflow.org", "trainingruntimes", "", "get"),
            ("", "configmaps", "", "get"),
        }

    def test_rights_are_those_of_the_documentation(self):
        text = (Path(__file__).parents[2] / "docs" / "trainjob.md").read_text()
        launcher = next(yaml.safe_load(block.partition("```")[0]) for block in text.split("```yaml")[1:])
        documented = {
            (group, resource, verb)
            for rule in launcher["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert {(group, resource, verb) for group, resource, verbs in RIGHTS for verb in verbs} == documented

    def test_rights_that_lack_are_named(self, doctor, kubernetes):
        kubernetes.refused = {("trainjobs", "create"), ("pods/log", "get")}
        code, checks = doctor()
        assert code == 1
        assert "may not create trainjobs, get pods/log" in checks["Rights"]["detail"]
        assert "runs.serviceAccounts" in checks["Rights"]["mend"]

    def test_no_trainer(self, doctor, kubernetes):
        del kubernetes.objects[TRAINER]
        code, checks = doctor()
        assert (code, checks["Kubeflow Trainer"]["state"]) == (0, "skipped")
        assert not any(review["group"] for review in kubernetes.reviews)

    def test_no_runtime(self, doctor, kubernetes):
        """An owner's install has none before an administrator makes it: training on one node works without."""
        del kubernetes.objects[f"{TRAINER}/namespaces/team/trainingruntimes/progrpo-torch-1"]
        code, checks = doctor()
        assert (code, checks["Training runtime"]["state"]) == (0, "warning")
        assert "there is no progrpo-torch-1" in checks["Training runtime"]["detail"]
        assert "An administrator of the cluster makes it" in checks["Training runtime"]["mend"]
        del kubernetes.objects[DEFAULTS]
        assert "names none" in doctor()[1]["Training runtime"]["detail"]

    def test_the_runtime_of_a_pod_is_that_of_its_environment(self, doctor, kubernetes, monkeypatch):
        monkeypatch.setenv("PROGRPO_TRAINING_RUNTIME", "own")
        assert "there is no own" in doctor()[1]["Training runtime"]["detail"]

    def test_account_of_the_runs_may_not_look_at_nodes(self, doctor, kubernetes):
        kubernetes.statuses = {"/api/v1/nodes": 403}
        kubernetes.refused = {("trainingruntimes", "get")}
        code, checks = doctor()
        assert (code, checks["GPU nodes"]["state"], checks["Training runtime"]["state"]) == (0, "skipped", "skipped")

    def test_pool_without_a_node(self, doctor, kubernetes):
        data = {"a100": pool("a100", 1), "big": pool("h100", 16)}
        kubernetes.objects["/api/v1/namespaces/team/configmaps/progrpo-gpu-pools"] = {"data": data}
        code, checks = doctor()
        assert (code, checks["GPU pool a100"]["state"], checks["GPU pool big"]["state"]) == (0, "warning", "warning")

    def test_no_gpu(self, doctor, kubernetes):
        kubernetes.objects["/api/v1/nodes"] = {"items": [node("cpu", None)]}
        assert doctor()[1]["GPU nodes"]["state"] == "warning"

    @pytest.mark.parametrize("status", [401, 500])
    def test_refused(self, doctor, kubernetes, status):
        kubernetes.statuses = {"/version": status}
        code, checks = doctor()
        assert (code, checks["Kubernetes"]["state"]) == (1, "failed")
        assert TOKEN not in json.dumps(checks)

    def test_kubeconfig_that_is_broken(self, doctor, monkeypatch, tmp_path):
        file = tmp_path / "broken"
        file.write_text("apiVersion: v1\n")
        monkeypatch.setenv("KUBECONFIG", str(file))
        code, checks = doctor()
        assert (code, checks["Kubernetes"]["state"]) == (1, "failed")

    def test_pod_without_a_token(self, doctor, monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
        code, checks = doctor()
        assert code == 1
        assert "automountServiceAccountToken" in checks["Kubernetes"]["mend"]


def test_table_names_what_to_do(recorder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--endpoint", recorder.url])
    out = capsys.readouterr().out
    assert "warning" in out
    assert "To do: progrpo upload" in out


def test_write_needs_a_place(capsys):
    with pytest.raises(SystemExit) as exited:
        cli.main(["doctor", "--write"])
    assert exited.value.code == 2
    assert "give --s3" in capsys.readouterr().err
