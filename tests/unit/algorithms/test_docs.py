"""docs/algorithms.md against the code: defaults are the configuration's, tests exist, no algorithm is missing."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from progrpo.algorithms import Algorithm
from progrpo.algorithms.entropy_bonus import AdaptiveEntropy
from progrpo.algorithms.registry import BUILT_IN as CONFIGS

HERE = Path(__file__).parent
TEXT = (HERE.parents[2] / "docs" / "algorithms.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.split("\n## ")[0].splitlines()
    if line.startswith("| `")
]
# entropy_bonus has two rows; its adaptive part needs a target, which has no default
BUILD = {name: config() for name, config in CONFIGS.items()} | {
    "entropy_bonus": CONFIGS["entropy_bonus"](adaptive=AdaptiveEntropy(target=1.0))
}


def name_of(row):
    return re.match(r"`(\w+)`", row[0])[1]


def switches(row):
    return re.findall(r"`([\w.]+)` = ([\w.]+) \(", row[3])


def value_at(config: BaseModel, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_every_algorithm_has_a_row_with_five_cells():
    assert {name_of(row) for row in ROWS} == set(CONFIGS)
    assert {len(row) for row in ROWS} == {5}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_defaults_are_the_configurations(row):
    for key, written in switches(row):
        value = value_at(BUILD[name_of(row)], key)
        assert value == (written if isinstance(value, str) else json.loads(written)), key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_switch_is_listed(name):
    own = set(CONFIGS[name].model_fields) - {"type", "loss", "dynamic_sampling", "overlong_penalty"}
    listed = {key.split(".")[0] for row in ROWS if name_of(row) == name for key, _ in switches(row)}
    assert own <= listed


@pytest.mark.parametrize(("file", "test"), sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT))))
def test_every_test_it_names_exists(file, test):
    assert f"def {test}(" in (HERE / file).read_text()


def test_every_hook_is_listed():
    table = TEXT.split("\n## Writing one")[1].split("\n\n")[2]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    hooks = [
        name
        for name in vars(Algorithm)
        if not name.startswith(("_", "model_")) and name not in ("metrics", "idle_on_policy")
    ]
    assert named == hooks
