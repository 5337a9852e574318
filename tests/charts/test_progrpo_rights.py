"""Who may do what in charts/progrpo, with which token, and which Secrets are named. No snapshots."""

import pytest

from charts.helm import load_values, pods, render, values_files

ALWAYS = {"trainJobs": {"mode": "always", "runtime": {"create": True}}}
VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}


@pytest.fixture(scope="module")
def release():
    return render("progrpo", ALWAYS)


def rules(release, name):
    return {
        (group, resource): rule["verbs"]
        for rule in release.one("Role", name)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


# Rights


def test_pipeline_runs_may_handle_trainjobs_and_nothing_else(release):
    assert rules(release, "progrpo-launcher") == {
        ("trainer.kubeflow.org", "trainjobs"): ["create", "get", "patch", "delete"],
        ("", "pods"): ["get", "list"],
        ("", "events"): ["list"],
        ("", "pods/log"): ["get"],
    }


def test_the_reaper_may_list_and_delete_trainjobs_and_what_the_chart_made(release):
    assert rules(release, "progrpo-reaper") == {
        ("trainer.kubeflow.org", "trainjobs"): ["list", "delete"],
        ("trainer.kubeflow.org", "trainingruntimes"): ["list", "delete"],
        ("argoproj.io", "workflows"): ["get"],
    }


def test_the_upload_has_rights_in_kubeflow_pipelines_only(release):
    assert rules(release, "progrpo-upload") == {
        ("pipelines.kubeflow.org", "pipelines"): ["create", "get", "list"],
    }


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_role_is_bound_to_its_own_account(values):
    release = render("progrpo", values)
    accounts = values.get("runs", {}).get("serviceAccounts", ["default-editor"])
    made = {manifest["metadata"]["name"] for manifest in release.of("ServiceAccount")}
    bindings = {b["metadata"]["name"]: b for b in release.of("RoleBinding")}
    assert set(bindings) == {role["metadata"]["name"] for role in release.of("Role")}
    for name, binding in bindings.items():
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subjects = {subject["name"] for subject in binding["subjects"]}
        assert subjects == (set(accounts) if name.endswith("-launcher") else {name}), name
        assert {subject["namespace"] for subject in binding["subjects"]} == {"team-a"}
        assert name.endswith("-launcher") or name in made


def test_rights_go_with_what_needs_them():
    assert not render("progrpo", VALUES["nothing"]).of("Role", "RoleBinding", "ServiceAccount")
    kept = {role["metadata"]["name"] for role in render("progrpo", VALUES["reaper-off"]).of("Role")}
    assert kept == {"progrpo-launcher", "progrpo-upload"}
    shared = render("progrpo", VALUES["upload-shared-namespace"])
    assert not shared.of("Role")  # rights in another namespace are not ours to give
    assert shared.one("ServiceAccount")["metadata"]["name"] == "progrpo-upload"


def test_accounts_have_the_tokens_they_need(release):
    assert release.pod("CronJob/progrpo-reaper").spec["serviceAccountName"] == "progrpo-reaper"
    assert release.pod("Job/progrpo-upload").spec["serviceAccountName"] == "progrpo-upload"
    # The check sees what pipeline pods see.
    assert release.pod("Job/progrpo-doctor").spec["serviceAccountName"] == "default-editor"
    assert release.pod("TrainingRuntime").spec["serviceAccountName"] == "default-editor"
    assert release.pod("TrainingRuntime").spec["automountServiceAccountToken"] is False
    assert all(account["automountServiceAccountToken"] is False for account in release.of("ServiceAccount"))


# Secrets


def references(release):
    """Return the Secrets that pods name, each with whether it may be absent."""
    found = {}
    for each in pods(release.manifests):
        for container in each.containers:
            assert "envFrom" not in container, "which sets whatever the keys are called"
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    found[reference["name"]] = reference.get("optional", False)
        for volume in each.spec.get("volumes", ()):
            assert "secret" not in volume
    return found


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_secret_is_made_and_only_known_ones_are_named(values):
    release = render("progrpo", values)
    assert not release.of("Secret")
    expected = {"progrpo-s3": True, "progrpo-mlflow": True}
    if token := values.get("kfp", {}).get("existingSecret"):
        expected[token] = False
    assert references(release).items() <= expected.items()


def test_only_the_check_gets_credentials(release):
    holders = {
        each.name
        for each in pods(release.manifests)
        for container in each.containers
        for variable in container.get("env", ())
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert holders == {"Job/progrpo-doctor"}, "training gets them from its launcher"


def test_the_token_for_kubeflow_pipelines_is_good_for_nothing_else(release):
    for name in ("progrpo-upload", "progrpo-doctor"):
        (volume,) = (v for v in release.pod(f"Job/{name}").spec["volumes"] if "projected" in v)
        (source,) = volume["projected"]["sources"]
        assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
        container = release.pod(f"Job/{name}").spec["containers"][0]
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == volume["name"])
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert environment["KF_PIPELINES_SA_TOKEN_PATH"] == f"{mount['mountPath']}/token"


@pytest.mark.parametrize(("name", "variable"), [("kfp-token-secret", "KFP_EXISTING_TOKEN"), ("kfp-single-user", None)])
def test_other_ways_to_the_api_mount_no_token(name, variable):
    release = render("progrpo", VALUES[name])
    upload = release.pod("Job/progrpo-upload")
    assert not any("projected" in volume for volume in upload.spec["volumes"])
    names = {v["name"] for v in upload.spec["containers"][0]["env"]}
    assert names == {"HOME", variable} - {None}
