"""What charts/progrpo promises, object by object: placement, training, settings, notes. No snapshots."""

import shutil

import pytest
import yaml

from charts.helm import CHARTS, load_values, pods, render, values_files

ALWAYS = {"trainJobs": {"mode": "always", "runtime": {"create": True}}}
VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}


@pytest.fixture(scope="module")
def release():
    return render("progrpo", ALWAYS)


@pytest.fixture(scope="module")
def everything():
    return render("progrpo", VALUES["everything"])


# Placement


def test_gpus_go_to_training_only():
    release = render("progrpo", VALUES["gpu-pool-of-runtime"])
    training = release.pod("TrainingRuntime")
    (node,) = training.spec["containers"]
    pool = VALUES["gpu-pool-of-runtime"]["gpuPools"]["h100"]
    assert node["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert node["resources"]["requests"]["nvidia.com/gpu"] == "8"
    assert training.spec["nodeSelector"] == pool["nodeSelector"]
    assert training.spec["tolerations"] == pool["tolerations"]
    for each in pods(release.manifests):
        if each is not training and each.owner["kind"] != "TrainingRuntime":
            assert "nvidia.com/gpu" not in str(each.spec)


def test_the_chart_s_own_pods_go_where_they_are_sent():
    values = VALUES["pods-placement"]
    release = render("progrpo", values)
    for each in pods(release.manifests):
        own = each.owner["kind"] != "TrainingRuntime"
        for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
            assert (each.spec.get(field) == values["pods"][field]) is own, (each.name, field)


def test_pools_are_files_of_parameters():
    release = render("progrpo", VALUES["gpu-pools"])
    found = {k: yaml.safe_load(v) for k, v in release.one("ConfigMap", "progrpo-gpu-pools")["data"].items()}
    assert sorted(found) == ["a100-spot", "h100", "mi300x", "mig"]
    for name, pool in VALUES["gpu-pools"]["gpuPools"].items():
        assert found[name] == {
            "gpu_count": pool["gpuCount"],
            "gpu_type": pool["gpuType"],
            "placement_node_selector": pool.get("nodeSelector", {}),
            "placement_tolerations": pool.get("tolerations", []),
        }


# Training over several nodes


def test_the_training_runtime_is_what_the_launcher_asks_for(release):
    """Names and numbers are the defaults of ``trainjob`` in a run's settings (docs/trainjob.md)."""
    runtime, training = release.one("TrainingRuntime"), release.pod("TrainingRuntime")
    (node,) = training.spec["containers"]
    assert node["name"] == "node"
    assert node["command"] == ["python", "-m", "progrpo_components.trainjob.worker"]
    assert "envFrom" not in node, "services and credentials are named by the launcher, under names of ours"
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 2, "torch": {}}
    assert node["image"].endswith(f"/progrpo-gpu:{runtime['metadata']['labels']['app.kubernetes.io/version']}")
    volumes = {volume["name"]: volume for volume in training.spec["volumes"]}
    assert volumes["dshm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert {"name": "dshm", "mountPath": "/dev/shm"} in node["volumeMounts"]


def test_training_pods_get_the_variables_that_are_given():
    values = VALUES["train-jobs-placement"]["trainJobs"]
    training = render("progrpo", VALUES["train-jobs-placement"]).pod("TrainingRuntime")
    environment = {v["name"]: v["value"] for v in training.spec["containers"][0]["env"]}
    assert environment == {"HOME": "/work", "TMPDIR": "/work", **values["env"]}
    assert training.spec["priorityClassName"] == values["priorityClassName"]
    assert training.spec["serviceAccountName"] == values["serviceAccount"]
    assert training.spec["runtimeClassName"] == values["runtimeClassName"]


def test_a_user_s_error_is_not_tried_again(release):
    spec = release.one("TrainingRuntime")["spec"]["template"]["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": "node", "operator": "In", "values": [2]}}
    ]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes wants it for podFailurePolicy


@pytest.mark.parametrize(("values", "claim"), [("cache", "progrpo-cache"), ("cache-existing", "team-models")])
def test_the_cache_is_mounted_where_the_images_keep_theirs(values, claim):
    release = render("progrpo", VALUES[values])
    training = release.pod("TrainingRuntime")
    (volume,) = (v for v in training.spec["volumes"] if v["name"] == "cache")
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert {"name": "cache", "mountPath": "/cache"} in training.spec["containers"][0]["volumeMounts"]
    assert [c["metadata"]["name"] for c in release.of("PersistentVolumeClaim")] == [claim] * (values == "cache")


def test_auto_follows_the_cluster(tmp_path):
    """Helm's offline engine cannot be told of a CRD, so the chart is told to look for something that is there."""
    chart = tmp_path / "progrpo"
    shutil.copytree(CHARTS / "progrpo", chart)
    helpers = chart / "templates" / "_helpers.tpl"
    asked = 'APIVersions.Has "trainer.kubeflow.org/v1alpha1"'
    assert helpers.read_text().count(asked) == 1
    parts, made = ("TrainingRuntime", "CronJob"), {"trainJobs": {"runtime": {"create": True}}}
    assert not render(chart, made).of(*parts)
    assert "no Kubeflow Trainer" in render(chart).notes
    helpers.write_text(helpers.read_text().replace(asked, 'APIVersions.Has "apps/v1"'))
    assert len(render(chart, made).of(*parts)) == 2
    assert "no Kubeflow Trainer" not in render(chart).notes
    assert not render(chart, {"trainJobs": {"mode": "never"}}).of(*parts)
    assert "PROGRPO_TRAINING_RUNTIME" not in render(chart, {"trainJobs": {"mode": "never"}}).one("ConfigMap")["data"]


# Settings


def test_settings_of_pipeline_pods():
    data = render("progrpo", VALUES["mlflow-and-s3"]).one("ConfigMap", "progrpo-defaults")["data"]
    assert data == {
        "KFP_ENDPOINT": "http://ml-pipeline.kubeflow.svc.cluster.local:8888",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.com/team-a",
        "AWS_ENDPOINT_URL": "https://s3.example.com:9000",
        "AWS_REGION": "eu-central-1",
        "PROGRPO_SANDBOX_URL": "http://progrpo-sandbox.team-a.svc:8080",
        "PROGRPO_S3_URI": "s3://team-a/progrpo",
    }


def test_what_is_not_set_is_absent(release):
    """An empty AWS_ENDPOINT_URL would be taken for an address."""
    data = dict(release.one("ConfigMap", "progrpo-defaults")["data"])
    assert data.pop("PROGRPO_TRAINING_RUNTIME") == release.one("TrainingRuntime")["metadata"]["name"]
    assert sorted(data) == ["AWS_REGION", "KFP_ENDPOINT", "PROGRPO_SANDBOX_URL"]
    assert all(data.values())


def test_the_ca_bundle_is_trusted_by_everyone_who_calls_out():
    release = render("progrpo", VALUES["ca-bundle"])
    for name in ("Job/progrpo-upload", "Job/progrpo-doctor", "TrainingRuntime"):
        each = release.pod(name)
        container = each.spec["containers"][0]
        environment = {v["name"]: v.get("value") for v in container["env"]}
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
            assert environment[variable] == "/etc/progrpo/ca/ca.pem"
        assert {"name": "ca", "configMap": {"name": "trusted-ca"}} in each.spec["volumes"]


def test_images_have_one_registry_and_digests_win():
    release = render("progrpo", VALUES["air-gap"])
    compiling = release.pod("Job/progrpo-upload").spec["initContainers"][0]
    environment = {v["name"]: v.get("value") for v in compiling["env"]}
    training = release.pod("TrainingRuntime").spec["containers"][0]["image"]
    # What pipelines run is what the chart's own pods run.
    assert environment["PROGRPO_CPU_IMAGE"] == compiling["image"]
    assert environment["PROGRPO_GPU_IMAGE"] == training
    tagged = render("progrpo", VALUES["image-tags"])
    images = {container["image"] for each in pods(tagged.manifests) for container in each.containers}
    assert images == {"registry.example.com/team/progrpo/progrpo-cpu:0.1.0-rc.1"}
    for each in pods(release.manifests):
        assert each.spec["imagePullSecrets"] == [{"name": "site-registry"}]


def test_openshift_chooses_users_and_groups_itself():
    release = render("progrpo", VALUES["openshift"])
    for each in pods(release.manifests):
        text = str(each.spec)
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(text.replace("'", " ").split())


def test_common_labels_and_annotations_are_everywhere_but_in_selectors():
    values = VALUES["common-metadata"]
    release = render("progrpo", values)
    for metadata in [*(m["metadata"] for m in release.manifests), *(p.metadata for p in pods(release.manifests))]:
        assert values["commonLabels"].items() <= metadata["labels"].items()
        assert values["commonAnnotations"].items() <= metadata["annotations"].items()
    assert "cost-center" not in str(release.one("Deployment")["spec"]["selector"])
    assert "cost-center" not in str(release.one("NetworkPolicy", "progrpo-sandbox")["spec"])


def test_no_pod_gets_istio_s_sidecar(everything):
    """It would keep jobs from ending, and the sandbox from starting."""
    assert all(each.metadata["labels"]["sidecar.istio.io/inject"] == "false" for each in pods(everything.manifests))


@pytest.mark.parametrize("name", ["p", "progrpo", "my-progrpo-release", "x" * 53])
def test_names_stay_within_kubernetes_bounds(name):
    release = render("progrpo", VALUES["everything"], name=name)
    for manifest in release.manifests:
        # A CronJob adds 11 characters to the names of its Jobs, which have 63.
        assert len(manifest["metadata"]["name"]) <= (52 if manifest["kind"] == "CronJob" else 63)
    # Compiled pipelines know these by name.
    assert release.one("ConfigMap", "progrpo-defaults")
    runtime = release.one("TrainingRuntime")["metadata"]["name"]
    assert release.one("ConfigMap", "progrpo-defaults")["data"]["PROGRPO_TRAINING_RUNTIME"] == runtime


# What a user sees


def test_notes_give_the_next_commands(release, everything):
    for command in (
        "kubectl -n team-a create secret generic progrpo-s3",
        "helm test progrpo -n team-a",
        "progrpo submit compare --preset smoke",
    ):
        assert command in release.notes
    assert "localhost/progrpo/..., which only a cluster on this machine has" in release.notes
    assert "progrpo-mlflow" not in release.notes
    assert "progrpo-mlflow" in everything.notes
    assert "localhost" not in everything.notes
    images = {container["image"] for each in pods(everything.manifests) for container in each.containers}
    exported = {line.partition("=")[2] for line in everything.notes.splitlines() if "export PROGRPO_" in line}
    assert exported == images  # what is submitted from outside runs what the chart runs
    assert "get configmap progrpo-gpu-pools" in everything.notes


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_uninstalling_leaves_nothing_but_runtimes(values):
    """Helm deletes all but hooks and what asks to stay, a runtime that TrainJobs use; our hooks delete themselves."""
    for manifest in render("progrpo", values).manifests:
        annotations = manifest["metadata"].get("annotations", {})
        assert ("helm.sh/resource-policy" in annotations) is (manifest["kind"] == "TrainingRuntime")
        if "helm.sh/hook" in annotations:
            policy = annotations["helm.sh/hook-delete-policy"]
            assert "hook-succeeded" in policy
            assert "hook-failed" in policy or manifest["spec"]["ttlSecondsAfterFinished"] > 0
