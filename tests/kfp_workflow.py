"""The nodes of an Argo workflow, as the API of Kubeflow Pipelines 2.17.0 shows them; part of kfp_recorder.py."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


def node_id(workflow: str, name: str) -> str:
    """NodeID of Argo Workflows 4.0.5 (pkg/apis/workflow/v1alpha1/workflow_types.go): FNV-1a, 32 bits."""
    value = 2166136261
    for byte in name.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return workflow if name == workflow else f"{workflow}-{value}"


def task_details(run: dict[str, Any], recorder: Any, logs: dict[str, str]) -> list[dict[str, Any]]:
    """Return nodes as Argo has them (addContainerExecutorTemplate, iterationItemTask in KFP's argocompiler).

    Args:
        run: of the recorder.
        recorder: says how many iterations and attempts there are, and what fails.
        logs: filled with the task, in a loop with the iteration, behind each node and pod that has a log.
    """
    document = run["pipeline_spec"]
    spec = document.get("pipeline_spec", document)
    platform = document.get("platform_spec", {}).get("platforms", {}).get("kubernetes", {})
    executors = platform.get("deploymentSpec", {}).get("executors", {})
    workflow = spec["pipelineInfo"]["name"] + "-x7f2k"
    nodes: list[tuple[str, list[str], str | None]] = []  # full name, names of what follows, task if it is one

    def add(name: str, after: list[str], task: str | None = None) -> None:
        nodes.append((name, after, task))

    def inside(around: str, dag: dict[str, Any], place: int | None) -> list[str]:
        """Add the tasks of a DAG; return those that it begins with."""
        first = []
        for name, task in dag["dag"]["tasks"].items():
            component, full = spec["components"][task["componentRef"]["name"]], f"{around}.{name}"
            if "parameterIterator" in task:
                items = [f"{full}.iteration-iterations({i}:{i})" for i in range(recorder.iterations)]
                first.append(full)
                add(full, [f"{full}.iteration-driver"])
                add(f"{full}.iteration-driver", [f"{full}.iteration-iterations"])
                add(f"{full}.iteration-iterations", items)
                for i, item in enumerate(items):
                    add(item, [f"{item}.iteration-item-driver"])
                    add(f"{item}.iteration-item-driver", [f"{item}.iteration-item"])
                    add(f"{item}.iteration-item", inside(f"{item}.iteration-item", component, i))
                continue
            first.append(f"{full}-driver")
            add(f"{full}-driver", [full])
            if "dag" in component:
                add(full, inside(full, component, place))
                continue
            add(full, [f"{full}.executor"], name)
            tries = [f"{full}.executor({i})" for i in range(recorder.attempts)] if "retryPolicy" in task else []
            add(f"{full}.executor", tries)
            for attempt in tries:
                add(attempt, [])
            metadata = executors.get(component["executorLabel"], {}).get("podMetadata")
            prefix = "" if metadata is None else (
                f"metadata-{len(metadata.get('annotations', {}))}-{len(metadata.get('labels', {}))}-"
            )  # fmt: skip
            template = f"{prefix}{'retry-' if tries else ''}system-container-impl"
            log = name if place is None else f"{name}({place})"
            pod = (tries or [f"{full}.executor"])[-1]
            logs[node_id(workflow, pod)] = log
            logs[node_id(workflow, pod).replace(workflow, f"{workflow}-{template}")] = log
        return first

    add(workflow, [f"{workflow}.root-driver"])
    add(f"{workflow}.root-driver", [f"{workflow}.root"])
    add(f"{workflow}.root", inside(f"{workflow}.root", spec["root"], None))
    finished = run["state"] in ("SUCCEEDED", "FAILED")
    details = []
    for i, (name, after, task) in enumerate(nodes):
        started = recorder.now() + timedelta(seconds=i)
        state = "SUCCEEDED" if finished or name.endswith("-driver") else "RUNNING"
        if run["state"] == "FAILED" and task is not None and task == recorder.failing:
            state = "FAILED"
        ended = started + timedelta(seconds=90)
        details.append(
            {
                "run_id": run["run_id"],
                "task_id": str(uuid.uuid4()),
                "display_name": name.rpartition(".")[2],
                "create_time": started.isoformat(),
                "start_time": started.isoformat(),
                "end_time": ended.isoformat() if state in ("SUCCEEDED", "FAILED") else _NEVER,
                "state": state,
                "child_tasks": [{"pod_name": node_id(workflow, child)} for child in after],
            }
        )
    return sorted(details, key=lambda detail: detail["task_id"])  # in no order that means anything
