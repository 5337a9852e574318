"""The picture in docs/architecture.md is the code's, and no modules import each other in a circle."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"progrpo": "components", "progrpo_components": "components", "progrpo_pipelines": "pipelines"}
PAGE = ROOT / "docs" / "architecture.md"


def _modules():
    """Return the file of every module, by its dotted name."""
    found = {}
    for package, source in SOURCES.items():
        for path in sorted((ROOT / source / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT / source).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def _imports(tree, modules):
    """Yield what a module imports of ours, and whether only once a function is called; not what types alone need."""

    def visit(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    yield (name if name in modules else child.module), late
            yield from visit(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return ((name, late) for name, late in visit(tree, False) if name in modules)


@pytest.fixture(scope="module")
def modules():
    return _modules()


@pytest.fixture(scope="module")
def imports(modules):
    """Two graphs of modules: what is imported when a module is loaded, and what only when a function is called."""
    early, late = defaultdict(set), defaultdict(set)
    for name, path in modules.items():
        for target, is_late in _imports(ast.parse(path.read_text(encoding="utf-8")), modules):
            if target != name:
                (late if is_late else early)[name].add(target)
    return dict(early), {name: targets - early.get(name, set()) for name, targets in late.items()}


def _circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return None


def _reached(graph, start):
    found, todo = set(), [start]
    while todo:
        new = graph.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def _drawn():
    """Return the page's boxes (the name of each of the modules in it, with the box) and its arrows by kind."""
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    boxes, arrows, package = {}, {"-->": set(), "-.->": set()}, ""
    for line in map(str.strip, diagram.splitlines()):
        if match := re.fullmatch(r"subgraph (\w+)", line):
            package = match[1]
        elif match := re.fullmatch(r'(\w+)\["(.+)"\]', line):
            boxes |= {f"{package}.{name}": match[1] for name in re.split(r", |<br>", match[2])}
        elif match := re.fullmatch(r"(\w+) (-->|-\.->) (.+)", line):
            arrows[match[2]] |= {(match[1], target) for target in match[3].split(" & ")}
    return boxes, arrows


def _between(graph, boxes):
    """Return the graph of the boxes that a graph of modules makes."""
    found = {box: set() for box in boxes.values()}
    for name, targets in graph.items():
        for target in targets - SOURCES.keys():  # a package's own file has its version and nothing else
            source, sink = (boxes[".".join(each.split(".")[:2])] for each in (name, target))
            if source != sink:
                found[source].add(sink)
    return found


def _arrows(early, late):
    """Return the arrows to draw: of imports while loading those that no longer way implies, of the rest all others."""
    solid = {
        (box, target)
        for box, targets in early.items()
        for target in targets
        if not any(target in _reached(early, other) for other in targets - {target})
    }
    return {
        "-->": solid,
        "-.->": {(box, to) for box, targets in late.items() for to in targets if to not in _reached(early, box)},
    }


def test_no_modules_import_each_other_in_a_circle(imports):
    early, _ = imports
    assert len(early) > 150, "the modules were not found"
    assert _circle(early) is None


def test_a_circle_is_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


def test_the_packages_own_files_import_nothing(imports):
    assert not imports[0].keys() & SOURCES.keys()
    assert not imports[1].keys() & SOURCES.keys()


def test_every_module_is_in_the_picture(modules):
    there = {".".join(name.split(".")[:2]) for name in modules} - SOURCES.keys()
    assert _drawn()[0].keys() == there


@pytest.mark.parametrize("kind", ["-->", "-.->"])
def test_the_arrows_are_the_imports(imports, kind):
    boxes, drawn = _drawn()
    early, late = (_between(graph, boxes) for graph in imports)
    assert _circle(early) is None, "the boxes can be cut so that none of them need each other"
    expected = _arrows(early, late)[kind]
    missing, wrong = sorted(expected - drawn[kind]), sorted(drawn[kind] - expected)
    assert not missing, f"draw in {PAGE.name}: {[f'{a} {kind} {b}' for a, b in missing]}"
    assert not wrong, f"take out of {PAGE.name}: {[f'{a} {kind} {b}' for a, b in wrong]}"
