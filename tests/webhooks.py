"""What the webhooks and CRDs of Kubeflow Trainer and JobSet refuse, of the fields that our manifests set.

Schemas of CRDs do not hold these rules. They were read in the programs' sources; each says where. A field that we begin
to set needs its rules here: a patch with another field than those below is refused as unknown.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TRAINER, TRAINERS = "kubeflow/trainer v2.3.0", "kubeflow/trainer v2.1.0 and v2.3.0"
JOBSET = "kubernetes-sigs/jobset v0.12.0"
"""The one that Trainer 2.3.0 is built with (its go.mod); rule names are those of v0.8.0 to v0.12.0."""
APIMACHINERY = "kubernetes/apimachinery v0.36.2"
KUBERNETES = "kubernetes/kubernetes v1.36"

_TYPES = "pkg/apis/trainer/v1alpha1/trainjob_types.go"
_PLUGIN = "pkg/runtime/framework/plugins/jobset/jobset.go"
_WEBHOOK = "pkg/webhooks/jobset_webhook.go"
_JOBSET_TYPES = "api/jobset/v1alpha2/jobset_types.go"
_VALIDATION = "pkg/util/validation/validation.go"

ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
NODE = "node"
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_HTTP_PATH = re.compile(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")
_RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_FAILURE_REASONS = {
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"),
}
_ACTIONS = {
    *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"),
    "RestartJobAndIgnoreMaxRestarts",
}
_POLICIES = {"torch", "mpi", "jax", "xgboost", "flux"}
_RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
_POD_FIELDS = {
    *("serviceAccountName", "volumes", "initContainers", "containers", "imagePullSecrets", "nodeSelector"),
    *("affinity", "tolerations", "schedulingGates"),
}
_LIMITS = {
    **{"volumes": 128, "initContainers": 64, "containers": 64, "imagePullSecrets": 64, "tolerations": 128},
    **{"env": 128, "volumeMounts": 128},
}
IMMUTABLE = ("failurePolicy", "network", "startupPolicy", "successPolicy", "volumeClaimPolicies")
"""Of ``spec.template.spec``: "Value is immutable" (manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml)."""


@dataclass(frozen=True)
class Rule:
    """A rule and where it was read."""

    program: str
    file: str
    function: str
    check: Callable[..., Iterator[str]]

    @property
    def name(self) -> str:
        """Name of the check."""
        return self.check.__name__.strip("_")


RULES: dict[str, list[Rule]] = {"TrainingRuntime": [], "TrainJob": [], "JobSet": []}


def _rule(kind: str, program: str, file: str, function: str) -> Callable[[Any], Any]:
    def add(check: Any) -> Any:
        RULES[kind].append(Rule(program, file, function, check))
        return check

    return add


def refused_runtime(runtime: Json) -> list[str]:
    """Return what is refused as a TrainingRuntime is made."""
    return _refusals("TrainingRuntime", runtime)


def refused_trainjob(trainjob: Json, runtime: Json | None) -> list[str]:
    """Return what is refused as a TrainJob is made; ``runtime`` is the one it names, None if there is none."""
    return _refusals("TrainJob", trainjob, runtime)


def refused_jobset(jobset: Json) -> list[str]:
    """Return what is refused as Trainer makes a JobSet."""
    return _refusals("JobSet", jobset)


def _refusals(kind: str, *objects: Json | None) -> list[str]:
    return [f"{rule.program} {rule.name}: {text}" for rule in RULES[kind] for text in rule.check(*objects)]


def jobset_of(trainjob: Json, runtime: Json) -> Json:
    """Return the JobSet of a TrainJob with what webhooks look at: names, numbers, policies. No pods are merged.

    Source: pkg/runtime/framework/plugins/jobset (SyncParallelCount, Build) of Trainer, Default of JobSet's webhook.
    """
    spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
    default = (runtime["spec"].get("mlPolicy") or {}).get("numNodes", 1)
    nodes = trainjob["spec"].get("trainer", {}).get("numNodes", default)
    for job in spec["replicatedJobs"]:
        job.setdefault("replicas", 1)
        job["template"]["spec"].setdefault("completionMode", "Indexed")
        if (job["template"].get("metadata") or {}).get("labels", {}).get(ANCESTOR) == "trainer":
            job["template"]["spec"] |= {"parallelism": nodes, "completions": nodes}
    metadata = {"name": trainjob["metadata"]["name"], "namespace": trainjob["metadata"].get("namespace")}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


# --- TrainingRuntime -------------------------------------------------------------------------------------------------


@_rule("TrainingRuntime", TRAINER, "pkg/webhooks/trainingruntime_webhook.go", "validateReplicatedJobs")
def _ancestor_has_one_replica(runtime: Json) -> Iterator[str]:
    for job in _replicated(runtime):
        if _ancestor(job) == "trainer" and job.get("replicas", 1) != 1:
            yield f"replicas of {job['name']} always must be 1"


@_rule("TrainingRuntime", TRAINER, "pkg/webhooks/trainingruntime_webhook.go", "validateReplicatedJobs")
def _ancestor_has_its_container(runtime: Json) -> Iterator[str]:
    for job in _replicated(runtime):
        names = {container["name"] for container in job["template"]["spec"]["template"]["spec"]["containers"]}
        if _ancestor(job) == "trainer" and NODE not in names:
            yield f"must contain the required container for the ancestor: trainer ({job['name']} has {sorted(names)})"


@_rule("TrainingRuntime", TRAINER, "pkg/apis/trainer/v1alpha1/trainingruntime_types.go", "MLPolicy, XValidation")
def _one_policy(runtime: Json) -> Iterator[str]:
    if len(_POLICIES & (runtime["spec"].get("mlPolicy") or {}).keys()) > 1:
        yield "Only one of the policy can be configured"


@_rule("TrainingRuntime", JOBSET, _JOBSET_TYPES, "FailurePolicyRule, Enum and UniqueItems")
def _failure_actions(runtime: Json) -> Iterator[str]:
    for rule in _failure_rules(runtime["spec"]["template"]["spec"]):
        if rule["action"] not in _ACTIONS:
            yield f"unsupported action {rule['action']}"
        yield from _doubles(rule.get("onJobFailureReasons", ()), "onJobFailureReasons")


# --- TrainJob --------------------------------------------------------------------------------------------------------


@_rule("TrainJob", TRAINER, "pkg/runtime/core/trainingruntime.go", "ValidateObjects")
def _runtime_exists(trainjob: Json, runtime: Json | None) -> Iterator[str]:
    if runtime is None:
        reference = trainjob["spec"]["runtimeRef"]
        yield f"{reference['name']}: specified trainingRuntime must be created before the TrainJob is created"


@_rule("TrainJob", TRAINER, _TYPES, "TrainJob, XValidation")
def _trainjob_name(trainjob: Json, _: Json | None) -> Iterator[str]:
    name = trainjob["metadata"]["name"]
    if not _DNS_1035.fullmatch(name):
        yield "metadata.name must match RFC 1035 DNS label format"
    if len(name) > 63:
        yield "metadata.name must be no more than 63 characters"


@_rule("TrainJob", APIMACHINERY, _VALIDATION, "IsQualifiedName, IsValidLabelValue")
def _labels(trainjob: Json, _: Json | None) -> Iterator[str]:
    patched = [template.get("metadata") or {} for _, template in _templates(trainjob)]
    for metadata in (trainjob["metadata"], *patched):
        for key in (metadata.get("labels") or {}) | (metadata.get("annotations") or {}):
            prefix, _, name = key.rpartition("/")
            if (prefix and not _SUBDOMAIN.fullmatch(prefix)) or not _QUALIFIED_NAME.fullmatch(name) or len(name) > 63:
                yield f"{key} is no name of a label or annotation"
        for key, value in (metadata.get("labels") or {}).items():
            if not _LABEL_VALUE.fullmatch(value) or len(value) > 63:
                yield f"label {key}: {value!r} is no value of a label"


@_rule("TrainJob", TRAINER, _TYPES, "RuntimeRef and Trainer, MaxLength, MaxItems and listMapKey")
def _lengths(trainjob: Json, _: Json | None) -> Iterator[str]:
    reference, trainer = trainjob["spec"]["runtimeRef"], trainjob["spec"].get("trainer", {})
    for field, value in reference.items():
        if not 1 <= len(value) <= 253:
            yield f"runtimeRef.{field} has {len(value)} characters, 1 to 253 are allowed"
    if len(trainer.get("image", "")) > 500:
        yield "trainer.image has more than 500 characters"
    for field in ("command", "args", "env"):
        if len(trainer.get(field, ())) > 128:
            yield f"trainer.{field} has more than 128 items"
    for field in ("command", "args"):
        if any(len(item) > 1048576 for item in trainer.get(field, ())):
            yield f"an item of trainer.{field} has more than 1048576 characters"
    yield from _doubles((entry["name"] for entry in trainer.get("env", ())), "trainer.env")


@_rule("TrainJob", TRAINER, _TYPES, "Trainer.NumNodes and NumProcPerNode (*int32), ActiveDeadlineSeconds, Minimum")
def _numbers(trainjob: Json, _: Json | None) -> Iterator[str]:
    trainer = trainjob["spec"].get("trainer", {})
    numbers = {f"trainer.{field}": trainer.get(field, 1) for field in ("numNodes", "numProcPerNode")}
    for field, value in {**numbers, "activeDeadlineSeconds": trainjob["spec"].get("activeDeadlineSeconds", 1)}.items():
        if type(value) is not int:
            yield f"{field} is no integer: {value!r}"
        elif field == "activeDeadlineSeconds" and value < 1:
            yield f"{field} should be greater than or equal to 1"


@_rule("TrainJob", KUBERNETES, "pkg/apis/core/validation/validation.go", "validateEnvVarValueFrom")
def _value_or_source(trainjob: Json, _: Json | None) -> Iterator[str]:
    for entry in trainjob["spec"].get("trainer", {}).get("env", ()):
        if entry.get("value") and entry.get("valueFrom"):
            yield f"env {entry['name']}: valueFrom may not be specified when `value` is not empty"


@_rule("TrainJob", TRAINER, "pkg/runtime/framework/plugins/torch/torch.go", "Validate")
def _reserved_variables(trainjob: Json, _: Json | None) -> Iterator[str]:
    names = {entry["name"] for entry in trainjob["spec"].get("trainer", {}).get("env", ())}
    if found := sorted(names & _RESERVED):
        yield f"must not have reserved envs, invalid envs configured: {found}"


@_rule("TrainJob", TRAINER, _PLUGIN, "Validate: IsDomainPrefixedPath; RuntimePatch, MaxItems and listMapKey")
def _manager(trainjob: Json, _: Json | None) -> Iterator[str]:
    patches = trainjob["spec"].get("runtimePatches", ())
    for patch in patches:
        host, _, path = patch.get("manager", "").partition("/")
        if not _SUBDOMAIN.fullmatch(host) or not _HTTP_PATH.fullmatch(path) or len(patch["manager"]) > 253:
            yield f"manager {patch.get('manager')!r} must be a domain-prefixed path (such as 'acme.io/foo')"
    if len(patches) > 16:
        yield "more than 16 runtimePatches"
    yield from _doubles((patch.get("manager") for patch in patches), "runtimePatches")


@_rule("TrainJob", TRAINERS, _PLUGIN, "Validate")
def _patched_job_exists(trainjob: Json, runtime: Json | None) -> Iterator[str]:
    known = set(_containers(runtime))
    for name, _ in _templates(trainjob):
        if runtime is not None and name not in known:
            yield f"must not have replicated job that doesn't exist in the runtime job template: {name}"


@_rule("TrainJob", TRAINERS, _PLUGIN, "Validate")
def _patched_container_exists(trainjob: Json, runtime: Json | None) -> Iterator[str]:
    known = _containers(runtime)
    for name, template in _templates(trainjob):
        for field in ("initContainers", "containers"):
            for container in (template.get("spec") or {}).get(field, ()):
                if name in known and container["name"] not in known[name]:
                    yield f"must not have container that doesn't exist in the runtime job {name}: {container['name']}"


@_rule("TrainJob", TRAINERS, _PLUGIN, "Validate")
def _no_variables_of_node(trainjob: Json, _: Json | None) -> Iterator[str]:
    for _, template in _templates(trainjob):
        for container in (template.get("spec") or {}).get("containers", ()):
            if container["name"] == NODE and container.get("env"):
                yield f"must not have envs for the {NODE} containers"


@_rule("TrainJob", TRAINERS, _TYPES, "PodSpecPatch, ContainerPatch; of 2.1 PodTemplateSpecOverride, ContainerOverride")
def _patch_fields(trainjob: Json, _: Json | None) -> Iterator[str]:
    hardening = {"securityContext"} if "runtimePatches" in trainjob["spec"] else set()
    pod_fields = _POD_FIELDS | hardening | ({"terminationGracePeriodSeconds"} if hardening else set())
    for _, template in _templates(trainjob):
        pod = template.get("spec") or {}
        unknown = [template.keys() - {"metadata", "spec", "targetJobs"}, pod.keys() - pod_fields]
        unknown += [c.keys() - {"name", "env", "volumeMounts"} - hardening for c in pod.get("containers", ())]
        if names := sorted(set().union(*unknown)):
            yield f"unknown field {', '.join(names)}"


@_rule("TrainJob", TRAINERS, _TYPES, "the same: listMapKey, of 2.3 MaxItems")
def _patch_lists(trainjob: Json, _: Json | None) -> Iterator[str]:
    for _, template in _templates(trainjob):
        pod = template.get("spec") or {}
        for owner in (pod, *pod.get("containers", ())):
            for field, limit in _LIMITS.items():
                items = owner.get(field, ())
                if "runtimePatches" in trainjob["spec"] and len(items) > limit:
                    yield f"{field} has more than {limit} items"
                if field != "tolerations":  # an atomic list; mounts are a map by the volume's name
                    yield from _doubles((item["name"] for item in items), field)


# --- JobSet ----------------------------------------------------------------------------------------------------------


@_rule("JobSet", JOBSET, _WEBHOOK, "ValidateCreate: GenJobName, IsDNS1035Label")
def _job_names(jobset: Json) -> Iterator[str]:
    for job in jobset["spec"]["replicatedJobs"]:
        yield from _label(f"{jobset['metadata']['name']}-{job['name']}-{job['replicas'] - 1}", "job")


@_rule("JobSet", JOBSET, _WEBHOOK, "ValidateCreate: GenPodName, IsDNS1035Label")
def _pod_names(jobset: Json) -> Iterator[str]:
    for job in jobset["spec"]["replicatedJobs"]:
        spec = job["template"]["spec"]
        if spec["completionMode"] == "Indexed" and "completions" in spec:
            name = f"{jobset['metadata']['name']}-{job['name']}-{job['replicas'] - 1}-{spec['completions'] - 1}-abcde"
            yield from _label(name, "pod")


@_rule("JobSet", JOBSET, _WEBHOOK, "ValidateCreate: IsDNS1035Label of groupName")
def _group_names(jobset: Json) -> Iterator[str]:
    for job in jobset["spec"]["replicatedJobs"]:
        yield from _label(job.get("groupName", "default"), "group")


@_rule("JobSet", JOBSET, _WEBHOOK, "validateFailurePolicy: ruleNameFmt, maxRuleNameLength")
def _failure_rule_names(jobset: Json) -> Iterator[str]:
    names = [rule["name"] for rule in _failure_rules(jobset["spec"])]
    for name in names:
        if not 1 <= len(name) <= 128:
            yield f"invalid failure policy rule name of length {len(name)}: 1 to 128 characters"
        elif not _RULE_NAME.fullmatch(name):
            yield (
                f"invalid failure policy rule name '{name}', a failure policy rule name must start with an alphabetic "
                f"character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an "
                f"alphanumeric character or '_'"
            )
    yield from _doubles(names, "rule names are not unique")


@_rule("JobSet", JOBSET, _WEBHOOK, "validateFailurePolicy")
def _failure_targets(jobset: Json) -> Iterator[str]:
    known = {job["name"] for job in jobset["spec"]["replicatedJobs"]}
    for rule in _failure_rules(jobset["spec"]):
        for name in set(rule.get("targetReplicatedJobs", ())) - known:
            yield f"invalid replicatedJob name '{name}' in failure policy does not appear in .spec.ReplicatedJobs"


@_rule("JobSet", JOBSET, _WEBHOOK, "validateFailurePolicy: validOnJobFailureReasons")
def _failure_reasons(jobset: Json) -> Iterator[str]:
    for rule in _failure_rules(jobset["spec"]):
        for reason in set(rule.get("onJobFailureReasons", ())) - _FAILURE_REASONS:
            yield f"invalid job failure reason '{reason}' in failure policy is not a recognized job failure reason"


@_rule("JobSet", KUBERNETES, "pkg/apis/batch/validation/validation.go", "validatePodFailurePolicyRuleOnExitCodes")
def _pod_failure_policy(jobset: Json) -> Iterator[str]:
    for job in jobset["spec"]["replicatedJobs"]:
        pod, spec = job["template"]["spec"]["template"]["spec"], job["template"]["spec"]
        names = {container["name"] for container in [*pod.get("initContainers", ()), *pod["containers"]]}
        if "podFailurePolicy" in spec and pod.get("restartPolicy") != "Never":
            yield 'only "Never" is supported when podFailurePolicy is specified'
        for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
            codes = rule["onExitCodes"]
            if codes.get("containerName", NODE) not in names:
                yield f"containerName {codes['containerName']} must be one of the container or initContainer names"
            if codes["values"] != sorted(set(codes["values"])) or (codes["operator"] == "In" and 0 in codes["values"]):
                yield f"values {codes['values']} must be ordered, without duplicates, and not 0 for the In operator"


# --- parts -----------------------------------------------------------------------------------------------------------


def _replicated(runtime: Json) -> list[Json]:
    return list(runtime["spec"]["template"]["spec"]["replicatedJobs"])


def _ancestor(job: Json) -> str | None:
    return (job["template"].get("metadata") or {}).get("labels", {}).get(ANCESTOR)


def _failure_rules(spec: Json) -> list[Json]:
    return (spec.get("failurePolicy") or {}).get("rules", [])


def _containers(runtime: Json | None) -> dict[str, set[str]]:
    """Return the names of the containers of each replicated job."""
    jobs = [] if runtime is None else _replicated(runtime)
    pods = {job["name"]: job["template"]["spec"]["template"]["spec"] for job in jobs}
    return {
        name: {c["name"] for c in [*pod.get("initContainers", ()), *pod["containers"]]} for name, pod in pods.items()
    }


def _templates(trainjob: Json) -> Iterator[tuple[str, Json]]:
    """Yield what is changed of pods, with the name of the replicated job, in either form."""
    for override in trainjob["spec"].get("podTemplateOverrides", ()):
        for target in override["targetJobs"]:
            yield target["name"], override
    for patch in trainjob["spec"].get("runtimePatches", ()):
        for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            yield job["name"], job["template"]["spec"]["template"]


def _label(name: str, what: str) -> Iterator[str]:
    if len(name) > 63:
        yield f"JobSet name is too long, {what} names generated for this JobSet will exceed 63 characters: {name}"
    elif not _DNS_1035.fullmatch(name):
        yield f"{name} is no DNS-1035 label"


def _doubles(names: Any, where: str) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{where}: Duplicate value: {name}"
