"""Full names of the nodes of a run's Argo workflow, which the API does not show.

It shows every node's display name, and of the ids only those of its children (``toModelTask`` in the API server's
``api_converter.go``, 2.17.0; it calls them pod names). Argo's id of a node is the workflow's name and the 32-bit FNV-1a
hash of the node's full name (``NodeID`` in its ``workflow_types.go``), and that is the full name of the DAG around it,
a dot, and the display name. So a name can be tried, and the hash says whether it is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193
_INDEX = re.compile(r"\((\d+):")  # iteration-iterations(3:3): place and item


def hashed(text: str, start: int = _FNV_OFFSET) -> int:
    """Return the FNV-1a hash of ``text``; from the hash of what stands before it on, if that is given as ``start``."""
    for byte in text.encode("utf-8"):
        start = ((start ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return start


def children_of(detail: Any) -> list[str]:
    """Return the ids of a node's children."""
    return [child.pod_name for child in detail.child_tasks or () if child.pod_name]


def node_names(details: Sequence[Any]) -> dict[str, str]:
    """Return the full name of each node by its id; without the nodes whose names follow another rule.

    Args:
        details: V2beta1PipelineTaskDetails of a run.
    """
    ids = {child for detail in details for child in children_of(detail)}
    if not ids:
        return {}
    workflow = min(ids).rpartition("-")[0]
    shown = {detail.display_name for detail in details if detail.display_name}
    names: dict[str, str] = {}
    around = [(workflow, hashed(workflow))]
    while around:
        outer, start = around.pop()
        for display in shown:
            inner = hashed(f".{display}", start)
            if (node := f"{workflow}-{inner}") in ids and node not in names:
                names[node] = f"{outer}.{display}"
                if not display.endswith("-driver") and not display.startswith("executor"):  # pods hold nothing
                    around.append((names[node], inner))
    return names


def iteration_of(name: str) -> int | None:
    """Return the place in its loop of the node called ``name``, from 0; None outside of loops."""
    places = _INDEX.findall(name)
    return int(places[-1]) if places else None


def last_attempt(node: str, names: dict[str, str]) -> str:
    """Return the node of the last attempt of a task that is tried again, and otherwise ``node`` itself."""
    base = names.get(node)
    tries = (
        [] if base is None else [id_ for id_, name in names.items() if re.fullmatch(rf"{re.escape(base)}\(\d+\)", name)]
    )
    return max(tries, key=lambda id_: int(names[id_].rpartition("(")[2][:-1]), default=node)
