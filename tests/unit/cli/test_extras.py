"""Each extra by itself: the commands it is for work, and a missing one is one sentence."""

import importlib.metadata as metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from progrpo_pipelines.extras import EXTRAS

ROOT = Path(__file__).parents[3]
MADE = "made"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = PROJECT["dependencies"]
OPTIONAL = PROJECT["optional-dependencies"]

# Runs a command while nothing can be imported but what the named requirements bring, as in an environment of its own.
# kfp-pipeline-spec by itself is a namespace package: it has no kfp/__init__.py.
ALONE = """
import importlib.abc, importlib.metadata as metadata, sys, types
from packaging.requirements import Requirement
allowed, todo = set(), [Requirement(text) for text in sys.argv[1].split("|")]
plain = lambda name: name.lower().replace("_", "-").replace(".", "-")
while todo:
    need = todo.pop()
    if plain(need.name) in allowed or (need.marker and not need.marker.evaluate({"extra": ""})):
        continue
    allowed.add(plain(need.name))
    try:
        todo += map(Requirement, metadata.requires(need.name) or ())
    except metadata.PackageNotFoundError:
        pass
blocked = {module for module, names in metadata.packages_distributions().items()
           if not {plain(name) for name in names} & (allowed | {"progrpo"})}
if "kfp" not in allowed and "kfp-pipeline-spec" in allowed:
    files = metadata.files("kfp-pipeline-spec")
    folder = next(file for file in files if file.name == "pipeline_spec_pb2.py").locate().parent
    for name, path in (("kfp", []), ("kfp.pipeline_spec", [str(folder)])):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = path
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from progrpo_pipelines.cli import main
main(sys.argv[2:])
"""


def requirements(*extras):
    found = [text for extra in extras for text in OPTIONAL[extra]]
    inner = [re.search(r"progrpo\[(.*)\]", text) for text in found]
    within = [name for match in inner if match for name in match[1].split(",")]
    return [
        *BASE,
        *(text for text in found if not text.startswith("progrpo[")),
        *(requirements(*within) if within else ()),
    ]


def alone(extras, *arguments):
    command = [sys.executable, "-c", ALONE, "|".join(requirements(*extras)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize(
    ("extras", "arguments"),
    [
        ((), ["--help"]),
        ((), ["presets"]),
        (("submit",), ["submit", "--help"]),
        (("submit",), ["submit", "pipelines/compiled/compare.yaml", "--experiment", "e", "--dry-run"]),
        (("compile",), ["submit", "compare", "--preset", "smoke", "--experiment", "e", "--dry-run"]),
    ],
)
def test_an_extra_is_enough_for_what_it_is_for(extras, arguments):
    done = alone(extras, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extras", "arguments", "missing"),
    [
        ((), ["submit", "pipelines/compiled/compare.yaml", "--experiment", "e", "--dry-run"], "submit"),
        (("submit",), ["submit", "compare", "--preset", "smoke", "--experiment", "e", "--dry-run"], "compile"),
        (("submit",), ["compile", "compare", "--output", MADE], "compile"),
        (("submit",), ["reap", "--namespace", "team"], "cluster"),
        (("submit",), ["run", "compare", "--preset", "smoke", "--output", MADE], "local"),
        (("submit",), ["plan", "compare", "--preset", "smoke"], "local"),
    ],
)
def test_a_missing_extra_is_one_sentence(extras, arguments, missing, tmp_path):
    done = alone(extras, *(str(tmp_path / text) if text is MADE else text for text in arguments))
    assert done.returncode == 2
    assert f"pip install 'progrpo[{missing}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / MADE).exists()


def test_the_table_names_what_the_extras_bring():
    brought = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        names = {plain(re.split(r"[^\w.-]", text)[0]) for text in requirements(extra)}
        for module in modules:
            top = module.split(".")[0]
            if top in brought and top != "google":  # of protobuf, which kfp-pipeline-spec needs
                assert names & {plain(name) for name in brought[top]}, (extra, module)


def plain(name):
    return re.sub(r"[_.]", "-", name.lower())
