"""Who we are to the server: tokens, cookies, CAs; and that nobody else gets to know it."""

import ssl
import subprocess
from pathlib import Path

import pytest

from kfp_recorder import Fault
from progrpo.errors import ConfigError
from progrpo_pipelines.client import api, connection
from progrpo_pipelines.client.connection import connect

SECRET = "eyJ-very-secret"


@pytest.fixture
def token_file(tmp_path) -> Path:
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    return path


def test_token_file(recorder, submit, token_file):
    recorder.token = SECRET
    done = submit("--token-file", str(token_file), "--json")
    assert done.code == 0
    assert SECRET not in done.out + done.err


def test_token_of_the_environment(recorder, submit, monkeypatch):
    recorder.token = SECRET
    monkeypatch.setenv("KFP_EXISTING_TOKEN", SECRET)
    assert submit().code == 0


def test_wrong_token_is_not_shown(recorder, submit, token_file):
    recorder.token = "another"
    done = submit("--token-file", str(token_file), "--json")
    assert done.code == 5
    assert "The credentials are missing, wrong or expired. Give a token by --token-file" in done.err
    assert SECRET not in done.out + done.err


@pytest.fixture
def at_second_look(recorder):
    """Have something done when the run is looked at for the second time."""

    def have(action):
        seen_run = recorder.seen_run

        def seen(run):
            if recorder.looks[run["run_id"]] == 1:
                action()
            return seen_run(run)

        recorder.seen_run = seen

    return have


def test_token_that_is_replaced_while_waiting(recorder, submit, token_file, at_second_look):
    """The kubelet renews a projected token every hour or so; runs take days."""
    recorder.token = SECRET

    def renew():
        token_file.write_text("renewed")
        recorder.token = "renewed"

    at_second_look(renew)
    assert submit("--token-file", str(token_file)).code == 0
    used = [request.headers.get("authorization") for request in recorder.requests]
    assert (used[0], used[-1]) == (f"Bearer {SECRET}", "Bearer renewed")


def test_session_cookie(recorder, submit, tmp_path, monkeypatch):
    recorder.cookie = "authservice_session=abc123"
    file = tmp_path / "cookie"
    file.write_text("authservice_session=abc123\n")
    assert submit("--cookie-file", str(file)).code == 0
    monkeypatch.setenv("KFP_COOKIE", "authservice_session=old")
    done = submit()
    assert done.code == 5
    assert "leads to a login page" in done.err
    assert "authservice_session=old" not in done.err


@pytest.mark.parametrize(("content", "message"), [("", "on one line"), ("a\nb", "on one line"), (None, "No such file")])
def test_token_file_that_cannot_be_used(submit, tmp_path, content, message):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    done = submit("--token-file", str(file))
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("https://user:secret@kubeflow.example.com", "must hold no user or password"),
        ("ftp://kubeflow", "is no address of an API"),
        ("https://kubeflow.example.com/#/runs", "nothing follows it"),
        ("https://", "is no address"),
        ("http://host:port", "is no address"),
    ],
)
def test_wrong_endpoint(submit, endpoint, message):
    done = submit(endpoint=endpoint)
    assert done.code == 2
    assert message in done.err
    assert "secret" not in done.err


def test_endpoint_must_be_known():
    with pytest.raises(ConfigError, match="Give --endpoint URL or the variable KFP_ENDPOINT"):
        connect(environment={})


def test_in_a_cluster_everything_is_there(monkeypatch, token_file):
    monkeypatch.setattr(connection, "IN_CLUSTER_TOKEN", token_file)
    found = connect(environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert found.endpoint == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert found.token() == SECRET
    assert SECRET not in repr(found)


def test_the_pods_token_is_for_the_cluster_only(monkeypatch, token_file):
    """An endpoint elsewhere must not be sent the service account's token."""
    monkeypatch.setattr(connection, "IN_CLUSTER_TOKEN", token_file)
    assert connect("https://kubeflow.example.com", environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).token() is None
    assert connect("http://ml-pipeline:8888", environment={}).token() == SECRET


def test_environment_is_not_in_the_repr():
    assert SECRET not in repr(connect("http://localhost", environment={"KFP_EXISTING_TOKEN": SECRET}))


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A certificate of a CA that nobody knows, for 127.0.0.1."""
    path = tmp_path / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(tmp_path / "ca.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "ca.pem").read_text())
    return path


def test_ca_of_ones_own(recorder, submit, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    recorder.wrap(context)
    without = submit(endpoint=recorder.url)
    assert without.code == 5
    assert "give its PEM file by --ca-file" in without.err
    assert submit("--ca-file", str(certificate.with_name("ca.pem")), endpoint=recorder.url).code == 0


def test_html_of_a_proxy_is_not_shown(recorder, submit):
    page = "<html><script>secret()</script></html>"
    recorder.faults = [Fault("GET", "/experiments", 502, times=99, body=page, headers={"Content-Type": "text/html"})]
    done = submit()
    assert done.code == 5
    assert "answered 502 Bad Gateway. See" in done.err
    assert "script" not in done.err


def test_pod_of_a_kubeflow_with_several_users_uses_its_own_namespace(recorder, submit, monkeypatch, tmp_path):
    file = tmp_path / "namespace"
    file.write_text("team")
    monkeypatch.setattr(api, "IN_CLUSTER_NAMESPACE", file)
    recorder.multi_user = True
    assert submit().code == 0
    assert recorder.posted("/experiments")[0]["namespace"] == "team"
    assert submit("--namespace", "other").code == 0
    recorder.multi_user = False
    assert submit("--experiment", "alone").code == 0
    assert "namespace" not in recorder.posted("/experiments")[-1]


def test_token_file_that_vanishes_while_waiting(recorder, submit, token_file, at_second_look):
    """The run is known by then, and so must be what is reported."""
    recorder.token, recorder.states = SECRET, ["RUNNING"]
    at_second_look(token_file.unlink)
    done = submit("--token-file", str(token_file), "--json")
    assert done.code == 5
    assert done.json["run_id"] in recorder.runs
    assert "cannot be read" in done.json["message"]


@pytest.mark.parametrize(
    ("endpoint", "proxy"),
    [
        ("https://kubeflow.example.com", "http://proxy.example.com:3128"),
        ("https://kubeflow.internal", None),
        ("http://127.0.0.1:8080", None),
    ],
)
def test_proxy_of_the_environment(monkeypatch, endpoint, proxy):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("NO_PROXY", "kubeflow.internal")
    assert connect(endpoint, environment={}).proxy == proxy
