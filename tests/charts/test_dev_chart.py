"""charts/progrpo-dev: its values, with every file of values/progrpo-dev its manifests, and what matters in them."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import helm_python
import pytest

from charts.helm import CHARTS, KUBERNETES, lint, load_values, pods, render, schema_error, schema_problems, values_files
from charts.policy import Exceptions, violations

CHART = "progrpo-dev"
FILES = values_files(CHART)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load_values(request.param)


def nested(path: str, value: Any) -> Any:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def load(name: str) -> dict[str, Any]:
    return load_values(next(path for path in FILES if path.stem == name))


def test_there_are_enough_of_them():
    assert len(FILES) >= 10


def test_lint_is_silent(values):
    assert lint(CHART, values, kube_version="v1.31.0") == []
    assert lint(CHART, values, kube_version="v1.37.0") == []


def test_manifests_fit_every_supported_kubernetes(values):
    release = render(CHART, values)
    assert release.manifests
    assert schema_problems(release.manifests, KUBERNETES) == []


def test_manifests_keep_to_the_policy(values):
    """The Secrets are random text of this render, not values of anybody."""
    release = render(CHART, values)
    made = [f"Secret/{secret['metadata']['name']}" for secret in release.of("Secret")]
    assert violations(release.manifests, Exceptions(generated_secrets=made)) == []


def test_install_dry_run(values):
    with helm_python.Config(namespace="team-a", storage_driver="memory") as config:
        result = config.install(str(CHARTS / CHART), "dev", values, namespace="team-a", dry_run="client")
    assert "kind: StatefulSet" in result["manifest"] or "kind: Deployment" in result["manifest"]


def test_no_image_comes_from_elsewhere_in_an_air_gap():
    images = [c["image"] for pod in pods(render(CHART, load("air-gap")).manifests) for c in pod.containers]
    assert images
    assert all(image.startswith("registry.site.example:5000/mirror/") for image in images)
    for pod in pods(render(CHART, load("air-gap")).manifests):
        assert pod.spec["imagePullSecrets"] == [{"name": "site-registry"}]


# (dotted key, wrong value, what Helm says)
REFUSED = [
    ("mlflow.enable", True, "/mlflow': additional properties 'enable' not allowed"),
    ("global.imageRegistry", "https://r.example", "/global/imageRegistry': 'https://r.example' does not match pattern"),
    ("mlflow.image.tag", "a b", "/mlflow/image/tag': 'a b' does not match pattern"),
    ("mlflow.image.digest", "sha256:beef", "/mlflow/image/digest': 'sha256:beef' does not match pattern"),
    ("mlflow.port", 0, "/mlflow/port': minimum: got 0, want 1"),
    ("mlflow.port", "5000", "/mlflow/port': got string, want integer"),
    ("mlflow.workers", 0, "/mlflow/workers': minimum: got 0, want 1"),
    ("mlflow.allowedHosts", ["*"], "/mlflow/allowedHosts/0': '*' does not match pattern"),
    ("mlflow.allowedHosts", "a.example", "/mlflow/allowedHosts': got string, want array"),
    ("mlflow.staticPrefix", "mlflow/", "/mlflow/staticPrefix': 'mlflow/' does not match pattern"),
    ("mlflow.bucket", "My_Bucket", "/mlflow/bucket': 'My_Bucket' does not match pattern"),
    ("mlflow.auth.password", "secret", "/mlflow/auth': additional properties 'password' not allowed"),
    ("mlflow.auth.defaultPermission", "WRITE", "/mlflow/auth/defaultPermission': value must be one of"),
    ("mlflow.auth.existingSecret", "Not A Name", "/mlflow/auth/existingSecret': 'Not A Name' does not match pattern"),
    ("mlflow.externalS3.endpoint", "s3.example", "/mlflow/externalS3/endpoint': 's3.example' does not match pattern"),
    ("mlflow.externalS3.endpoint", "https://k:s@s3.example", "/mlflow/externalS3/endpoint':"),
    ("mlflow.externalDatabase.host", "u:p@db.example", "/mlflow/externalDatabase/host':"),
    ("mlflow.extraEnv", {"AWS_SECRET_ACCESS_KEY": "x"}, "invalid propertyName 'AWS_SECRET_ACCESS_KEY'"),
    ("mlflow.extraEnv", {"DEBUG": 1}, "/mlflow/extraEnv/DEBUG': got number, want string"),
    ("mlflow.resources.limits.memory", "2 GB", "/mlflow/resources/limits/memory':"),
    ("postgresql.settings", {"port": 1}, "invalid propertyName 'port'"),
    ("postgresql.user", "Robert'); DROP TABLE", "/postgresql/user':"),
    ("postgresql.persistence.size", "10 gigabytes", "/postgresql/persistence/size':"),
    ("postgresql.auth.password", "secret", "/postgresql/auth': additional properties 'password' not allowed"),
    ("s3.volumeSizeLimitMB", 1, "/s3/volumeSizeLimitMB': minimum: got 1, want 16"),
    ("s3.auth.secretName", "", "/s3/auth/secretName': '' does not match pattern"),
    ("s3.tolerations", [{"key": "a", "effect": "Never"}], "/s3/tolerations/0/effect': value must be one of"),
    ("networkPolicy.s3From", [{}], "/networkPolicy/s3From/0': minProperties: got 0, want 1"),
    ("openshift", "yes", "/openshift': got string, want boolean"),
    ("fullnameOverride", "9lives", "/fullnameOverride': '9lives' does not match pattern"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_wrong_values_are_refused(path, value, message):
    assert message in schema_error(CHART, nested(path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"s3": {"image": {"tag": "latest"}}}, "the tag latest of chrislusf/seaweedfs .* give a version"),
        ({"postgresql": {"enabled": False}}, "set mlflow.externalDatabase.host"),
        (
            {"postgresql": {"enabled": False}, "mlflow": {"externalDatabase": {"host": "db.example"}}},
            "set mlflow.externalDatabase.existingSecret",
        ),
    ],
)
def test_what_the_schema_cannot_say_the_templates_do(values, message):
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render(CHART, values)


# --- what matters ----------------------------------------------------------------------------------------------------


def environment(container: Any) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def reference(name: str, key: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


def test_no_generated_secret_is_anywhere_but_in_its_secret():
    release = render(CHART, name="dev")
    texts = str([m for m in release.manifests if m["kind"] != "Secret"]) + release.notes
    secrets = release.of("Secret")
    assert len(secrets) == 4
    for secret in secrets:
        assert secret["immutable"] is True
        assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        for value in secret["data"].values():
            decoded = b64decode(value).decode()
            assert decoded == "progrpo" or len(decoded) >= 20
            assert decoded == "progrpo" or decoded not in texts


def test_pods_of_pipelines_find_the_credentials_under_their_names():
    release = render(CHART)
    assert release.one("Secret", "progrpo-s3")["data"].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    keys = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert release.one("Secret", "progrpo-mlflow")["data"].keys() == keys


def test_own_secrets_are_used_and_none_is_made():
    release = render(CHART, load("existing-secrets"), name="dev")
    assert not release.of("Secret")
    (mlflow,) = release.one("Deployment")["spec"]["template"]["spec"]["containers"]
    env = environment(mlflow)
    assert env["PGPASSWORD"] == reference("our-postgresql", "POSTGRES_PASSWORD")
    assert env["AWS_SECRET_ACCESS_KEY"] == reference("our-s3", "AWS_SECRET_ACCESS_KEY")
    assert env["MLFLOW_FLASK_SERVER_SECRET_KEY"] == reference("our-session", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    assert env["MLFLOW_AUTH_ADMIN_PASSWORD"] == reference("our-mlflow", "MLFLOW_TRACKING_PASSWORD")


def test_external_stores_replace_the_charts_own():
    release = render(CHART, load("only-mlflow"), name="dev")
    assert not release.of("StatefulSet", "PersistentVolumeClaim")
    (mlflow,) = release.one("Deployment")["spec"]["template"]["spec"]["containers"]
    env = environment(mlflow)
    assert env["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://mlflow@db.site.example:5432/mlflow"
    assert env["PGPASSWORD"] == reference("tracking-db", "POSTGRES_PASSWORD")
    assert env["AWS_ENDPOINT_URL"] == "http://s3.site.example"
    egress = release.one("NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in egress[1:] for port in rule["ports"]] == [5432, 80]


def test_aws_with_a_role_needs_no_endpoint_and_no_secret():
    release = render(CHART, load("aws-role"))
    (mlflow,) = release.one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert not {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"} & environment(mlflow).keys()
    assert "eks.amazonaws.com/role-arn" in release.one("ServiceAccount")["metadata"]["annotations"]
    assert release.one("NetworkPolicy", "progrpo-progrpo-dev-mlflow")["spec"]["egress"][-1]["ports"][0]["port"] == 443


def test_only_mlflow_reaches_the_database_and_nothing_leaves_the_stores():
    release = render(CHART, name="dev")
    policy = release.one("NetworkPolicy", "dev-progrpo-dev-postgresql")["spec"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert "namespaceSelector" not in peer
    for name in ("postgresql", "s3"):
        policy = release.one("NetworkPolicy", f"dev-progrpo-dev-{name}")["spec"]
        assert policy["egress"] == []
        assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_settings_of_postgresql_are_written_as_it_reads_them():
    settings = {"work_mem": "64MB", "max_wal_size": 1048576, "random_page_cost": 1.1, "jit": False}
    release = render(CHART, {"postgresql": {"settings": settings}})
    (container,) = release.one("StatefulSet", "progrpo-progrpo-dev-postgresql")["spec"]["template"]["spec"][
        "containers"
    ]
    written = {"work_mem=64MB", "max_wal_size=1048576", "random_page_cost=1.1", "jit=false", "port=5432"}
    assert written <= set(container["args"])


def test_of_seaweedfs_only_s3_leaves_the_pod():
    (container,) = render(CHART).one("StatefulSet", "progrpo-progrpo-dev-s3")["spec"]["template"]["spec"]["containers"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(container["args"])
    assert [port["name"] for port in container["ports"]] == ["s3"]


def test_openshift_chooses_user_and_group():
    for values, fixed in ((load("openshift"), False), ({}, True)):
        for pod in pods(render(CHART, values).manifests):
            context = pod.spec["securityContext"]
            assert ("runAsUser" in context, "fsGroup" in context) == (fixed, fixed)
            assert context["runAsNonRoot"] is True


def test_placement_is_each_parts_own():
    specs = {pod.name: pod.spec for pod in pods(render(CHART, load("placement"), name="dev").manifests)}
    assert specs["Deployment/dev-progrpo-dev-mlflow"]["nodeSelector"] == {"pool": "cpu"}
    assert specs["StatefulSet/dev-progrpo-dev-postgresql"]["nodeSelector"] == {"disk": "ssd"}
    assert specs["StatefulSet/dev-progrpo-dev-postgresql"]["tolerations"] == [{"operator": "Exists"}]
    assert specs["StatefulSet/dev-progrpo-dev-s3"]["nodeSelector"] == {"disk": "hdd"}


def test_a_server_in_migration_is_alone():
    deployment = render(CHART).one("Deployment")["spec"]
    assert deployment["strategy"] == {"type": "Recreate"}
    first = deployment["template"]["spec"]["initContainers"][0]
    assert first["command"][:3] == ["mlflow", "db", "upgrade"]


def test_a_change_of_the_authorization_restarts_mlflow():
    def checksum(values: dict[str, Any]) -> str:
        return render(CHART, values).one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum({}) == checksum({"s3": {"persistence": {"size": "90Gi"}}})
    assert checksum({}) != checksum({"mlflow": {"auth": {"defaultPermission": "EDIT"}}})
