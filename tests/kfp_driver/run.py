"""A stand-in for what Kubeflow Pipelines does with a package on a cluster, as strict as the real one.

It plays a compiled package with the rules of kubeflow/pipelines 2.17.0: compiles the workflow, resolves every input,
makes the pod of every task as Kubernetes would get it, keeps the states of tasks and blocks, and tells the exit task
what it would hear. What runs in a pod is the test's: :class:`Run` calls ``play`` with the pod.

Each rule names its file (below ``backend/src`` unless it says more) and function; what a rule leaves out, no package of
ours uses, and meeting it is an error here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from kfp_driver.pods import Artifact, Json, Pod, RefusedError, check_output, make_pod, provision

KINDS = {bool: "BOOLEAN", str: "STRING", list: "LIST", dict: "STRUCT"}
COMPLETED = ("COMPLETE", "CACHED", "CANCELED")


class FailedError(Exception):
    """Raised by ``play``: the program in the pod ends with an error, and its launcher says so."""


class KilledError(Exception):
    """Raised by ``play``: the whole pod goes, its launcher with it."""


class TerminatedError(Exception):
    """Raised by ``play``: somebody presses Terminate while this pod runs."""


@dataclass
class Execution:
    """A task or a block in ML Metadata."""

    name: str
    parent: Execution | None = None
    state: str = "RUNNING"
    expected: int | None = None
    dag: Json | None = None
    parameters: Json = field(default_factory=dict)
    inputs: dict[str, list[Artifact]] = field(default_factory=dict)
    results: Json = field(default_factory=dict)
    outputs: dict[str, Artifact] = field(default_factory=dict)
    children: list[Execution] = field(default_factory=list)
    iterations: int | None = None


class Run:
    """One pipeline run; :meth:`execute` plays it.

    Attributes:
        pods: in the order they were made, one for each attempt.
        root: the executions.
        heard: the word that the exit task got, None without one.
        workflow: what Argo would show of it.
    """

    def __init__(
        self,
        package: str,
        parameters: Mapping[str, Any],
        play: Callable[[Pod], None],
        *,
        pipeline_root: str = "minio://mlpipeline/v2/artifacts",
        plugin_env: Callable[[str], Sequence[Json]] = lambda task: (),
        cached: Collection[str] = (),
        backend: str = "2.17",
        run_id: str = "1e11760d-0000-4000-8000-000000000000",
        name: str = "compare abc",
    ) -> None:
        """Submit a package.

        Args:
            package: text of the compiled file.
            parameters: of the run.
            play: what runs in the pods; it may raise one of the errors above.
            pipeline_root: under which outputs are put.
            plugin_env: what the MLflow plugin hands out to a task: v2/common/plugins/mlflow/handler.go,
                RetrieveUserContainerEnvVars.
            cached: names of tasks that the cache has.
            backend: version of Kubeflow Pipelines.
            run_id: of the run.
            name: of the run.
        """
        self.spec, platform = yaml.load_all(package, Loader=yaml.CSafeLoader)
        self.kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self._play, self._plugin_env, self._cached, self._backend = play, plugin_env, set(cached), backend
        self.pipeline_root, self.run_id, self.name = pipeline_root, run_id, name
        self.workflow_name = "compare-x7"
        self.pods: list[Pod] = []
        self.heard: str | None = None
        self.workflow: Json = {"spec": {}, "status": {"nodes": {}}}
        self.phase = "Succeeded"
        # v2/compiler/argocompiler/argo.go, Compile; apiserver/template/v2_template.go, validatePipelineJobInputs
        values = dict(parameters)
        definitions = self.spec["root"]["inputDefinitions"]["parameters"]
        for key, definition in definitions.items():
            if key not in values and "defaultValue" in definition:
                values[key] = definition["defaultValue"]
            elif key not in values and not definition.get("isOptional"):
                raise RefusedError(
                    f"parameter {key} is not optional, yet has neither default value nor user provided value"
                )
        # v2/driver/root_dag.go, RootDAG: no number of tasks is kept for it, so its state is never looked at
        self.root = Execution("", parameters=values, dag=self.spec["root"]["dag"])

    def execute(self) -> Run:
        """Play the run to its end."""
        self._block(self.root, f"{self.workflow_name}.root")
        return self

    def find(self, name: str) -> list[Execution]:
        """Return the executions of a task or block."""
        waiting, found = [self.root], []
        while waiting:
            execution = waiting.pop(0)
            found += [execution] if execution.name == name else []
            waiting += execution.children
        return found

    # --- the workflow: v2/compiler/argocompiler/dag.go, DAG, task, iteratorTask ---------------------------------------

    def _block(self, dag: Execution, path: str) -> bool:
        """Run the tasks of a block; return whether it went well. Exit tasks run however the others went."""
        assert dag.dag is not None
        tasks = dag.dag["tasks"]
        exits = {name for name, task in tasks.items() if "strategy" in task.get("triggerPolicy", {})}
        done: set[str] = set()
        well = True
        while ready := [name for name in sorted(tasks) if name not in done | exits and _needs(tasks[name]) <= done]:
            # Argo starts nothing more in a block in which something failed (DAGTemplate.failFast).
            if not well:
                break
            done.add(ready[0])
            well = self._task(dag, ready[0], tasks[ready[0]], path)
        for name in sorted(exits):
            self._task(dag, name, tasks[name], path)
        if not well:
            self.phase = "Failed"
        return well

    def _task(self, parent: Execution, name: str, task: Json, path: str) -> bool:
        component = self.spec["components"][task["componentRef"]["name"]]
        if "dag" not in component:
            return self._container(parent, name, task, component, path)
        parameters, inputs = self._resolve(parent, task, component)
        block = Execution(name, parent, dag=component["dag"], parameters=parameters, inputs=inputs)
        block.expected = len(component["dag"]["tasks"])
        parent.children.append(block)
        if not _triggers(task, parameters):
            block.state = "CANCELED"  # v2/metadata/client.go, CreateExecution; and nobody looks at the parent's state
            return True
        if "parameterIterator" not in task:
            return self._block(block, f"{path}.{name}")
        # v2/driver/dag.go, DAG; resolve.go, resolveInputs of an iteration
        iterator = task["parameterIterator"]
        items = parameters[iterator["items"]["inputParameter"]]
        block.iterations = len(items)
        if self._backend >= "2.17":
            block.expected = len(items)
        well = True
        for i, item in enumerate(items):
            values = {key: value for key, value in parameters.items() if key != iterator["items"]["inputParameter"]}
            values[iterator["itemInput"]] = item
            once = Execution(name, block, dag=component["dag"], parameters=values, inputs=inputs)
            once.expected = len(component["dag"]["tasks"])
            block.children.append(once)
            well = well and self._block(once, f"{path}.{name}.iteration-iterations({i}:{i}).iteration-item")
        return well

    def _container(self, parent: Execution, name: str, task: Json, component: Json, path: str) -> bool:
        parameters, inputs = self._resolve(parent, task, component)
        execution = Execution(name, parent, parameters=parameters, inputs=inputs)
        parent.children.append(execution)
        if not _triggers(task, parameters):
            execution.state = "CANCELED"
            return True
        pod = self._pod(execution, component)
        execution.outputs, execution.results = pod.outputs, pod.results
        if name in self._cached and task.get("cachingOptions", {}).get("enableCache"):
            self._play(pod)
            execution.state = (
                "CACHED"  # v2/driver/container.go, Container: published by the driver, which goes no further
            )
            return True
        attempts = 1 + int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        node = f"{path}.{name}.executor"
        for attempt in range(attempts):
            pod = replace(pod, results={})
            self.pods.append(pod)
            phase = self._attempt(execution, pod)
            self._node(node if attempts == 1 else f"{node}({attempt})", "Pod", phase)
            if phase == "Succeeded" or "activeDeadlineSeconds" in self.workflow["spec"]:
                break
        if attempts > 1:
            self._node(node, "Retry", phase)
        return phase == "Succeeded"

    def _pod(self, execution: Execution, component: Json) -> Pod:
        label = component["executorLabel"]
        return make_pod(
            execution.name,
            component,
            self.spec["deploymentSpec"]["executors"][label]["container"],
            self.kubernetes[label],
            parameters=execution.parameters,
            inputs=execution.inputs,
            outputs=provision(self.pipeline_root, execution.name, component),
            plugin_env=self._plugin_env(execution.name),
            resolved=lambda source: self._parameter(execution.parent, {}, source),
        )

    def _node(self, name: str, kind: str, phase: str) -> None:
        nodes = self.workflow["status"]["nodes"]
        nodes[f"{self.workflow_name}-{len(nodes)}"] = {"name": name, "type": kind, "phase": phase}

    # --- the launcher: v2/component/launcher_v2.go, Execute -----------------------------------------------------------

    def _attempt(self, execution: Execution, pod: Pod) -> str:
        """Run a pod; whatever its program does, unless the launcher goes with it, the state is published."""
        try:
            self._play(pod)
            for artifact in pod.outputs.values():
                check_output(artifact.uri, self.pipeline_root)
        except KilledError:
            return "Failed"
        except TerminatedError:
            self.workflow["spec"]["activeDeadlineSeconds"] = 0  # common/util/execution_spec.go
            return "Failed"
        except (FailedError, RefusedError):
            execution.state = "FAILED"
        else:
            results = json.loads(json.dumps(pod.results), parse_int=float)  # a protobuf value knows one kind of number
            execution.state, execution.outputs, execution.results = "COMPLETE", pod.outputs, results
        if execution.parent is not None:
            self._update(execution.parent)
        return "Succeeded" if execution.state == "COMPLETE" else "Failed"

    def _update(self, dag: Execution) -> None:
        """Look at the state of a block: v2/metadata/client.go, UpdateDAGExecutionsState."""
        if dag.expected is None:
            return
        states = [child.state for child in dag.children]
        if sum(state in COMPLETED for state in states) == dag.expected:
            dag.state = "COMPLETE"
        elif "FAILED" in states:
            dag.state = "FAILED"
        else:
            return
        if self._backend >= "2.17" and dag.parent is not None:
            self._update(dag.parent)

    # --- the driver: v2/driver/resolve.go -----------------------------------------------------------------------------

    def _resolve(self, parent: Execution, task: Json, component: Json) -> tuple[Json, dict[str, list[Artifact]]]:
        """Resolve the inputs of a task: resolveInputs."""
        definitions = component.get("inputDefinitions", {})
        types = {name: item["parameterType"] for name, item in definitions.get("parameters", {}).items()}
        given = task.get("inputs", {})
        values = {}
        for name, source in given.get("parameters", {}).items():
            if types.get(name) != "TASK_CONFIG":
                values[name] = self._parameter(parent, task, source)
        for name, value in values.items():
            if name in types:
                values[name] = _typed(name, value, types[name])
        inputs = {name: self._artifacts(parent, source) for name, source in given.get("artifacts", {}).items()}
        return values, inputs

    def _parameter(self, parent: Execution, task: Json, source: Json) -> Any:
        """Resolve one parameter: resolveInputParameter."""
        ((kind, value),) = source.items()
        if kind == "componentInputParameter":
            if value not in parent.parameters:
                raise RefusedError(f"parent DAG does not have input parameter {value}")
            return parent.parameters[value]
        if kind == "taskOutputParameter":
            producer = _child(parent, value["producerTask"])
            return producer.results[value["outputParameterKey"]]
        if kind == "taskFinalStatus":
            self.heard = _child(parent, task["dependentTasks"][0]).state
            return {"state": self.heard, "pipelineTaskName": task["dependentTasks"][0], "error": {},
                    "pipelineJobResourceName": self.workflow_name}  # fmt: skip
        assert kind == "runtimeValue", kind
        constant = value["constant"]
        places = {
            "{{$.pipeline_job_uuid}}": self.run_id,
            "{{$.pipeline_job_name}}": self.name,
            "{{$.pipeline_job_resource_name}}": self.workflow_name,
        }
        return places.get(constant, constant) if isinstance(constant, str) else constant

    def _artifacts(self, parent: Execution, source: Json) -> list[Artifact]:
        """Resolve an artifact, or the list of those of a loop: resolveInputArtifact, CollectInputs."""
        ((kind, value),) = source.items()
        if kind == "componentInputArtifact":
            return parent.inputs[value]
        return _made(_child(parent, value["producerTask"]), value["outputArtifactKey"])


def _typed(name: str, value: Any, wanted: str) -> Any:
    """Check a value's type; whatever is given for a text becomes one: resolve.go, resolveInputs."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and wanted in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        return float(value)
    if wanted == "STRING" and not isinstance(value, str):
        return f"{value:.15g}" if number else json.dumps(value)
    kind = KINDS.get(type(value), "number")
    if kind != wanted and not (kind == "STRUCT" and wanted == "TASK_FINAL_STATUS"):
        raise RefusedError(f"input parameter {name!r} type mismatch: expect {wanted}, got {kind}")
    return value


def _triggers(task: Json, parameters: Json) -> bool:
    """Evaluate a condition: v2/expression/expression.go, Condition; the comparisons of texts that dsl.If makes."""
    condition = task.get("triggerPolicy", {}).get("condition")
    if condition is None:
        return True
    found = re.fullmatch(r"inputs\.parameter_values\['(.+?)'\] (==|!=) '(.*)'", condition)
    assert found is not None, condition
    return (parameters[found[1]] == found[3]) == (found[2] == "==")


def _needs(task: Json) -> set[str]:
    """Return the tasks that one waits for: dag.go, addImplicitDependencies."""
    inputs = task.get("inputs", {})
    sources = [*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()]
    named = {value["producerTask"] for source in sources for value in source.values() if "producerTask" in value}
    return named | set(task.get("dependentTasks", ()))


def _child(parent: Execution, name: str) -> Execution:
    found = [child for child in parent.children if child.name == name]
    if len(found) > 1:
        raise RefusedError(f"two tasks have the same task name {name!r}")
    return found[0]


def _made(execution: Execution, key: str) -> list[Artifact]:
    """Return what a task or block made: resolve.go, resolveUpstreamArtifacts, GetProducerTask, CollectInputs."""
    if execution.dag is None:
        return [execution.outputs[key]]
    if execution.iterations is not None:
        return [artifact for once in execution.children for artifact in _made(once, key)]
    (selector,) = execution.dag["outputs"]["artifacts"][key]["artifactSelectors"]
    return _made(_child(execution, selector["producerSubtask"]), selector["outputArtifactKey"])
