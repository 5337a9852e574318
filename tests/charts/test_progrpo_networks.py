"""The walls of charts/progrpo: what the sandbox holds, and who reaches whom."""

import pytest

from charts.helm import load_values, pods, render, selects, values_files

ALWAYS = {"trainJobs": {"mode": "always", "runtime": {"create": True}}}
VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}


@pytest.fixture(scope="module")
def release():
    return render("progrpo", ALWAYS)


@pytest.fixture(scope="module")
def everything():
    return render("progrpo", VALUES["everything"])


# The sandbox


def test_nothing_leaves_the_sandbox(release):
    policy = release.one("NetworkPolicy", "progrpo-sandbox")["spec"]
    sandbox = release.pod("Deployment/progrpo-sandbox")
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert selects(policy["podSelector"], sandbox.metadata["labels"])


def test_the_sandbox_holds_nothing(release):
    spec = release.pod("Deployment/progrpo-sandbox").spec
    (container,) = spec["containers"]
    assert "serviceAccountName" not in spec
    assert "envFrom" not in container
    assert {v["name"] for v in container["env"]} == {"HOME", "PROGRPO_CODE_ISOLATION"}
    assert spec["volumes"] == [{"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}]


def test_only_pipelines_training_and_the_check_reach_the_sandbox(release):
    (rule,) = release.one("NetworkPolicy", "progrpo-sandbox")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]
    kfp_pod = {"pipelines.kubeflow.org/v2_component": "true"}
    training = release.pod("TrainingRuntime").metadata["labels"]
    doctor = release.pod("Job/progrpo-doctor").metadata["labels"]

    def reaches(labels):
        return any(selects(peer["podSelector"], labels) for peer in rule["from"])

    assert reaches(kfp_pod)
    assert reaches(training)
    assert reaches(doctor)
    assert not reaches(release.pod("Job/progrpo-upload").metadata["labels"])
    assert not reaches({"app": "notebook"})
    assert all(set(peer) == {"podSelector"} for peer in rule["from"])  # of this namespace


def test_the_service_finds_the_sandbox_and_everyone_the_service(release):
    service, sandbox = release.one("Service", "progrpo-sandbox"), release.pod("Deployment/progrpo-sandbox")
    assert service["spec"]["selector"].items() <= sandbox.metadata["labels"].items()
    (port,), (container,) = service["spec"]["ports"], sandbox.spec["containers"]
    assert port["targetPort"] in {p["name"] for p in container["ports"]}
    listens = container["command"][container["command"].index("--port") + 1]
    assert int(listens) == port["port"] == container["ports"][0]["containerPort"]
    url = release.one("ConfigMap", "progrpo-defaults")["data"]["PROGRPO_SANDBOX_URL"]
    assert url == f"http://{service['metadata']['name']}.team-a.svc:{port['port']}"


def test_several_sandboxes_are_drained_one_by_one(release):
    assert not release.of("PodDisruptionBudget")  # of one pod, it would hold up a node's drain for ever or do nothing
    several = render("progrpo", VALUES["sandbox-gvisor"])
    budget = several.one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert selects(budget["selector"], several.pod("Deployment/progrpo-sandbox").metadata["labels"])
    spec = several.pod("Deployment/progrpo-sandbox").spec
    assert spec["runtimeClassName"] == "gvisor"
    assert spec["terminationGracePeriodSeconds"] > spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_without_a_sandbox_nobody_is_sent_to_it():
    release = render("progrpo", VALUES["sandbox-off"])
    assert "PROGRPO_SANDBOX_URL" not in release.one("ConfigMap", "progrpo-defaults")["data"]
    assert not release.of("Deployment", "Service", "NetworkPolicy")


# Networks


def test_network_policies_select_the_pods_they_are_for(everything):
    policies = {p["metadata"]["name"]: p["spec"] for p in everything.of("NetworkPolicy")}
    covered = {
        each.name.partition("/progrpo-torch-")[0]: [
            name for name, spec in policies.items() if selects(spec["podSelector"], each.metadata["labels"])
        ]
        for each in pods(everything.manifests)
    }
    assert covered == {
        "Job/progrpo-upload": ["progrpo-jobs"],
        "Job/progrpo-doctor": ["progrpo-jobs"],
        "CronJob/progrpo-reaper": ["progrpo-jobs"],
        "Deployment/progrpo-sandbox": ["progrpo-sandbox"],
        "TrainingRuntime": ["progrpo-training"],
        "Pod/progrpo-account": ["progrpo-jobs"],
    }
    assert selects(policies["progrpo-runs"]["podSelector"], {"pipelines.kubeflow.org/v2_component": "true"})


def test_allowed_ways_out_are_the_ones_that_are_named():
    release = render("progrpo", VALUES["network-policy"])
    egress = release.one("NetworkPolicy", "progrpo-jobs")["spec"]["egress"]
    namespaces = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in egress
        for peer in rule.get("to", ())
        if "namespaceSelector" in peer
    ]
    blocks = [(p["ipBlock"]["cidr"], rule["ports"]) for rule in egress for p in rule.get("to", ()) if "ipBlock" in p]
    assert namespaces == ["kubeflow", "mlflow", "storage"]
    assert blocks == [("10.0.0.1/32", [{"protocol": "TCP", "port": 6443}])]
    everywhere = [rule["ports"] for rule in egress if "to" not in rule]
    assert everywhere == [[{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]]


def test_ranks_hear_each_other(everything):
    spec = everything.one("NetworkPolicy", "progrpo-training")["spec"]
    labels = everything.pod("TrainingRuntime").metadata["labels"]
    (rule,) = spec["ingress"]
    assert selects(rule["from"][0]["podSelector"], labels)
    assert "ports" not in rule
