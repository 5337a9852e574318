"""docs/install.md: its values work, and its commands name what the chart makes."""

import re

import pytest
import yaml

from charts.helm import ROOT, lint, render, schema_problems

TEXT = (ROOT / "docs" / "install.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: block.split(":")[0].lstrip("# ").replace(".yaml\nglobal", "")
)
def test_the_values_it_shows_work(block):
    values = yaml.safe_load(block)
    assert lint("progrpo", values) == []
    assert (
        schema_problems(
            render("progrpo", {"trainJobs": {"mode": "always", "runtime": {"create": True}}} | values).manifests,
            ["1.31"],
        )
        == []
    )


def test_it_shows_values_for_every_kind_of_site():
    assert len(BLOCKS) >= 6


def test_values_that_it_names_exist():
    defaults = yaml.safe_load((ROOT / "charts" / "progrpo" / "values.yaml").read_text())
    named = {
        name
        for name in re.findall(r"`([a-z][A-Za-z0-9]*(?:\.[a-zA-Z0-9]+)+)`", TEXT)
        if name.split(".")[0] in defaults and not name.endswith(".org")
    }
    assert len(named) >= 8
    for name in named:
        value = defaults
        for part in name.split("."):
            assert part in value, name
            value = value[part]
