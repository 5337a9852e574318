"""Algorithms and tasks of other installed packages: found by name, checked, listed, and refused in one sentence."""

import importlib
import sys

import pytest
import torch

import plugins as package
from progrpo import plugins
from progrpo.config import FileSource, parse
from progrpo.errors import ConfigError
from progrpo.rewards import task_of, verify
from progrpo_components.form import FIELDS, arguments_of, read_form, settings_of
from progrpo_components.settings import ComparePipeline, TrainAndEvaluatePipeline
from progrpo_pipelines.cli import main
from progrpo_pipelines.packaging.presets import form_defaults

RLOO = {"name": "rloo", "algorithm": {"type": "rloo"}}
NEAR = '{"type": "within", "tolerance": 0.1}'


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages that are installed for this test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    monkeypatch.undo()
    forget()
    for name in [name for name in sys.modules if name.startswith("progrpo_example") or name.startswith("of_others")]:
        del sys.modules[name]


def forget():
    importlib.invalidate_caches()
    plugins.offered.cache_clear()
    task_of.cache_clear()


@pytest.fixture
def example(site):
    package.install(site)
    return site


def others(site, group, value, text="", name="theirs"):
    package.write(site, "of-others", "2.0", {group: {name: value}})
    (site / "of_others.py").write_text(text)


def rloo():
    return parse(ComparePipeline, {"arms": [RLOO], "comparison": {"baseline": "rloo"}}, source="s").arms[0].algorithm


def test_the_example_is_short():
    lines = [line for file in package.EXAMPLE.glob("*.py") for line in file.read_text().splitlines()]
    assert len(lines) < 60


def test_a_plugin_is_named_like_what_is_built_in(example):
    algorithm = rloo()
    assert type(algorithm).__name__ == "RLOO"
    # 1, 0, 0: the others' mean is 0 for the right one, 1/2 for the wrong ones; the unscored one takes no part
    rewards = torch.tensor([[1.0, 0.0, 0.0, torch.nan], [1.0, torch.nan, torch.nan, torch.nan]])
    torch.testing.assert_close(algorithm.advantages(rewards, None), torch.tensor([[1.0, -0.5, -0.5, 0.0], [0.0] * 4]))


def test_a_task_has_settings(example):
    source = FileSource(train_uri="a.jsonl", task={"type": "within", "tolerance": 0.1})
    assert source.task == NEAR
    assert FileSource.model_validate(source.model_dump()) == source
    assert FileSource(train_uri="a.jsonl", task={"type": "within", "tolerance": 0.01}).task == "within"
    assert verify(NEAR, "100", "answer: 9*10").correct
    assert not verify("within", "100", "answer: 9*10").correct
    assert verify("within", "100", "answer: 9*10").answer == "9*10"
    assert task_of("within").unreadable(["1.5", "ten"]) == {"ten": "it is no number"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"arms": [{"name": "a", "algorithm": {"type": "rloo", "bias": 1}}]},
            r"rloo: bias: unknown key\. Allowed here",
        ),
        (
            {"arms": [{"name": "a", "algorithm": {"type": "reinforce"}}]},
            r"'reinforce' .* does not match any of",
        ),
        (
            {"dataset": {"source": {"type": "file", "train_uri": "a", "task": {"type": "within", "toll": 1}}}},
            r"dataset\.source\.task: task within: toll: .* Its settings are: type, tolerance",
        ),
        (
            {"dataset": {"source": {"type": "file", "train_uri": "a", "task": "chess"}}},
            r"task: unknown task 'chess'\. Allowed: code, countdown, exact, math, within",
        ),
        (
            {"dataset": {"source": {"type": "file", "train_uri": "a", "task": "{within"}}},
            r"task: unknown task '{within'\. Allowed: ",
        ),
    ],
)
def test_settings_are_those_of_its_own_model(example, values, said):
    with pytest.raises(ConfigError, match=said):
        parse(ComparePipeline, {"comparison": {"baseline": "start"}, **values}, source="s")


def test_settings_are_written_as_they_were_given(example, recwarn):
    settings = parse(ComparePipeline, {"arms": [RLOO], "comparison": {"baseline": "start"}}, source="s")
    assert settings.model_dump(mode="json")["arms"][0]["algorithm"]["type"] == "rloo"
    assert not [warning for warning in recwarn if "Pydantic" in str(warning.message)]


def test_nothing_is_imported_before_its_name_is_used(example):
    parse(
        ComparePipeline,
        {"arms": [{"name": "a", "algorithm": {"type": "grpo"}}], "comparison": {"baseline": "a"}},
        source="s",
    )
    assert "progrpo_example" not in sys.modules
    rloo()
    assert "progrpo_example" in sys.modules


def test_the_form_offers_what_is_built_in_and_overrides_name_the_rest(example):
    literals = {field.name: field.literals for field in FIELDS}
    assert "rloo" not in literals["algorithm"]
    given = settings_of({"arm": RLOO, "dataset": {"source": {"type": "file", "train_uri": "a.jsonl", "task": NEAR}}})
    settings = TrainAndEvaluatePipeline.model_validate(given)
    said = arguments_of("train-and-evaluate", given, settings.model_dump(mode="json", exclude_none=True))
    form = {**form_defaults("train-and-evaluate"), **said}
    assert form["algorithm"] in literals["algorithm"]
    assert form["dataset_task"] in literals["dataset_task"]
    assert read_form("train-and-evaluate", form, {}) == settings
    assert [arm.algorithm.type for arm in read_form("compare", {"arms": ["grpo", "rloo"]}, {}).arms] == ["grpo", "rloo"]


def test_both_are_listed(example, capsys):
    for command in ("algorithms", "tasks"):
        with pytest.raises(SystemExit) as exit_:
            main([command])
        assert not exit_.value.code
    printed = capsys.readouterr().out
    assert "rloo [progrpo-example 0.1.0]: The leave-one-out baseline: A_i = R_i" in printed
    assert "within [progrpo-example 0.1.0]: " in printed
    assert "    tolerance = 0.01: largest difference" in printed
    assert "progrpo: GRPO with the Advantage Re-weighting Mechanism" in printed
    assert "    timeout_s = 10.0: wall time" in printed


CLASS = "from typing import Literal\nfrom progrpo.algorithms import Algorithm\n"


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        ("of_others:X", "import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("of_others:X", "raise SystemError('no GPU')", "SystemError: no GPU"),
        ("of_others:Gone", "", "AttributeError"),
        ("of_others:X", "X = 1", "it is no subclass of progrpo.algorithms.base.Algorithm"),
        ("of_others:X", f"{CLASS}class X(Algorithm):\n    type: Literal['x'] = 'x'", 'type: Literal["theirs"]'),
        ("of_others:X", f"{CLASS}class X(Algorithm, extra='allow'):\n    type: Literal['theirs'] = 'theirs'", "closed"),
    ],
)
def test_a_broken_algorithm_is_one_error_that_names_the_package(site, value, text, reason, capsys):
    others(site, "progrpo.algorithms", value, text)
    with pytest.raises(ConfigError) as raised:
        parse(ComparePipeline, {"arms": [{"name": "a", "algorithm": {"type": "theirs"}}]}, source="s")
    assert "the package of-others 2.0 cannot be used" in str(raised.value)
    assert reason in str(raised.value)
    with pytest.raises(SystemExit) as exit_:
        main(["algorithms"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'theirs' of the package of-others 2.0")


TASK = "from typing import ClassVar, Literal\nfrom progrpo.rewards import Task\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{TASK}class X(Task):\n    type: Literal['theirs'] = 'theirs'", "version and answers must be texts"),
        (
            f"{TASK}class X(Task):\n    type: Literal['theirs'] = 'theirs'\n    version: ClassVar[str] = '1'\n"
            f"    answers: ClassVar[str] = 'any'",
            "it has neither verify nor verify_all",
        ),
    ],
)
def test_a_task_without_its_hooks_is_refused(site, text, reason):
    others(site, "progrpo.tasks", "of_others:X", text)
    with pytest.raises(ConfigError, match=f"the package of-others 2.0 cannot be used .*{reason}"):
        task_of("theirs")


def test_a_name_that_is_built_in_is_not_to_be_taken(site):
    others(site, "progrpo.algorithms", "of_others:X", name="dapo")
    with pytest.raises(ConfigError, match=r"of-others 2\.0 offers 'dapo' in progrpo\.algorithms, but that is built in"):
        parse(ComparePipeline, {"arms": [{"name": "a", "algorithm": {"type": "dapo"}}]}, source="s")


def test_a_name_that_two_packages_offer_is_ambiguous(example):
    others(example, "progrpo.algorithms", "of_others:X", name="rloo")
    with pytest.raises(ConfigError, match=r"of-others 2\.0 and progrpo-example 0\.1\.0 both offer 'rloo'"):
        rloo()
