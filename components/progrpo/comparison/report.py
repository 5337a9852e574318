"""``report.html``: one file that works offline, on a phone, on paper and in the dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from progrpo.algorithms.base import in_force
from progrpo.comparison import charts, tables
from progrpo.comparison.drilldown import Drilldown, embed_completions
from progrpo.comparison.evaluation_charts import auroc_rows, calibration_chart, position_charts
from progrpo.comparison.examples import find_examples
from progrpo.comparison.gate import rule_text
from progrpo.comparison.palette import looks
from progrpo.comparison.result import ArmResult, Comparison
from progrpo.comparison.sources import Evaluation, Training
from progrpo.config.merging import flatten


@dataclass(frozen=True)
class ConfigRow:
    """One key of a configuration, with its value in each arm."""

    key: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the arms have different values."""
        return len(set(self.values)) > 1


def draw_charts(
    comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], trainings: Sequence[Training]
) -> dict[str, list[charts.Chart]]:
    """Draw the plots of every section of the report; a section without anything to show is empty.

    Args:
        comparison: the numbers.
        evaluations: by arm, in the order of the seeds.
        trainings: the training runs that were given.
    """
    training, other_training = charts.training_charts(comparison, trainings)
    drawn: dict[str, list[charts.Chart | None]] = {
        "curve": [charts.pass_at_k_chart(comparison), charts.difference_chart(comparison)],
        "training": [*training],
        "other_training": [*other_training],
        "position": [*position_charts(comparison, evaluations)],
        "calibration": [calibration_chart(comparison, evaluations)],
        "bars": [*charts.bar_charts(comparison)],
        "scatter": [charts.scatter_chart(comparison, evaluations)],
        "cost": [charts.cost_chart(comparison)],
    }
    return {section: [chart for chart in of_section if chart is not None] for section, of_section in drawn.items()}


def render_report(
    comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], shown: Mapping[str, Sequence[charts.Chart]]
) -> str:
    """Return the whole report as HTML.

    Nothing is fetched: scripts, styles and data are inside, and a content security policy that names the digests of
    the two scripts keeps any other from running, should text of a model ever slip through the escaping.

    Args:
        comparison: the numbers.
        evaluations: by arm, in the order of the seeds.
        shown: the plots, see :func:`draw_charts`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("progrpo.comparison"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(tables=tables, rule_text=rule_text)
    scripts = {"plotly_js": get_plotlyjs(), "report_js": _template_text("report.js")}
    for name, text in scripts.items():
        assert "</script" not in text.lower(), f"{name} cannot be put into a page"
    drilldown = None
    if shown["scatter"]:
        ids = evaluations[comparison.baseline][0].problem_ids
        drilldown = embed_completions(evaluations, [ids[p] for p in charts.shown_problems(ids)])
    trained = [arm for arm in comparison.arms if arm.algorithm is not None]
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        looks=looks(comparison.arm_names),
        sentences=tables.headline_sentences(comparison),
        charts=shown,
        figures={chart.id: chart.figure for group in shown.values() for chart in group},
        drilldown=drilldown,
        completions=None if drilldown is None else _completions(drilldown, comparison, evaluations),
        examples=find_examples(comparison, evaluations),
        trained=trained,
        auroc_rows=auroc_rows(evaluations),
        method_rows=config_rows([_method(arm) for arm in trained]),
        train_rows=config_rows([arm.train or {} for arm in trained]),
        protocol=comparison.protocol,
        evaluation_rows=_evaluation_rows(evaluations),
        versions=_versions(comparison.arms),
        css=Markup(_template_text("report.css")),  # noqa: S704 - our own file
        script_hashes=[_csp_hash(text) for text in scripts.values()],
        **{name: Markup(text) for name, text in scripts.items()},  # noqa: S704 - our own and Plotly's
    )


def _completions(
    drilldown: Drilldown, comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]
) -> dict[str, Any]:
    """Lay out the drill-down for the page: rates in whole percent, problems in the order of the scatter plot."""
    chosen = charts.shown_problems(evaluations[comparison.baseline][0].problem_ids)
    rates = {
        arm: (100 * charts.success_rates(of_arm)[chosen]).round().astype(int) for arm, of_arm in evaluations.items()
    }
    return {
        "arms": list(evaluations),
        "colours": {arm: look.colour for arm, look in looks(list(evaluations)).items()},
        "problem_ids": drilldown.problem_ids,
        "rates": {arm: values.tolist() for arm, values in rates.items()},
        "block_size": drilldown.block_size,
        "blocks": drilldown.blocks,
    }


def config_rows(configs: Sequence[Mapping[str, Any]]) -> list[ConfigRow]:
    """Lay configurations side by side, key by key; an absent key shows as a dash."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    return [
        ConfigRow(key, tuple("–" if values.get(key) is None else str(values[key]) for values in flat)) for key in keys
    ]


def _method(arm: ArmResult) -> dict[str, Any]:
    """Return what is in force for an arm: what its algorithm sets, else what all arms share."""
    algorithm = arm.algorithm or {}
    return {k: value for k, value in (algorithm | in_force(algorithm, arm.train or {})).items() if value is not None}


def _evaluation_rows(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[ConfigRow]:
    return config_rows([of_arm[0].config.get("evaluation") or {} for of_arm in evaluations.values()])


def _versions(arms: Sequence[ArmResult]) -> list[tuple[str, str]]:
    """Every version that took part, by name; several where the runs did not agree."""
    seen: dict[str, dict[str, None]] = {}
    for arm in arms:
        for result in arm.per_seed:
            for name, version in result.versions.items():
                seen.setdefault(name, {})[version] = None
    return [(name, ", ".join(versions)) for name, versions in sorted(seen.items())]


def _template_text(name: str) -> str:
    return resources.files("progrpo.comparison").joinpath("templates", name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
