"""The ways into a cluster."""

import subprocess
import sys

import pytest
from kubernetes.config import incluster_config

from kubernetes_api import TOKEN, serve
from progrpo_components.errors import ClusterError
from progrpo_components.trainjob import cluster
from progrpo_components.trainjob.cluster import Cluster


@pytest.fixture
def service_account(tmp_path, monkeypatch):
    """What Kubernetes mounts into a pod, at another place."""
    for name, text in {"token": "token-of-the-pod", "namespace": "team-b\n", "ca.crt": "certificate"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cluster, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("kubernetes.client.rest.RESTClientObject.__init__", lambda *_: None)  # no certificate to load
    return tmp_path


def test_a_pod_uses_its_service_account(service_account):
    found = Cluster.connect()
    assert (found.host, found.namespace) == ("https://10.0.0.1:443", "team-b")
    configuration = found._client.configuration
    assert configuration.ssl_ca_cert == str(service_account / "ca.crt")
    assert configuration.auth_settings()["BearerToken"]["value"].lower() == "bearer token-of-the-pod"


def test_a_token_that_the_kubelet_renewed_is_read_again(service_account, monkeypatch):
    monkeypatch.setattr(incluster_config.InClusterConfigLoader, "_read_token_file", _expire_at_once)
    found = Cluster.connect()
    (service_account / "token").write_text("renewed")
    assert found._client.configuration.auth_settings()["BearerToken"]["value"].lower() == "bearer renewed"


def _expire_at_once(loader):
    import datetime
    from pathlib import Path

    loader.token = "bearer " + Path(loader._token_filename).read_text()
    loader.token_expires_at = datetime.datetime.now()


def test_a_namespace_that_is_given_wins(service_account):
    assert Cluster.connect("team-c").namespace == "team-c"


@pytest.mark.parametrize("text", [None, "", "not: a kubeconfig", "{"])
def test_no_way_in_is_explained(tmp_path, monkeypatch, text):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    if text is not None:
        (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(ClusterError, match=r"no way to a Kubernetes API: .*elsewhere set KUBECONFIG"):
        Cluster.connect()


def test_a_wrong_token_is_refused_and_not_shown(api, tmp_path):
    with (
        serve(api, tmp_path / "kubeconfig", token="wrong-token"),
        pytest.raises(ClusterError, match=r"does not accept the credentials \(401\)") as caught,
    ):
        Cluster.connect().list_trainjobs("")
    assert "wrong-token" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_workers_need_no_kubernetes_package():
    """The training image goes without it."""
    program = "import sys, progrpo_components.trainjob.worker\nassert not {'kubernetes', 'kfp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
