"""The report: complete in one file, safe with hostile text, drawn without a network."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from progrpo.comparison import tables
from progrpo.comparison.compare import compare
from progrpo.comparison.result import Difference, read_comparison
from progrpo.config import CompareConfig

HOSTILE = "</script></pre><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}"
QUICK = CompareConfig(num_resamples=100)


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the contents of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw, self.text, self._inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = tag
            self.raw.append((tag, dict(attributes), ""))

    def handle_endtag(self, tag):
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)
        else:
            self.text.append(data)

    @property
    def figures(self):
        return json.loads(next(text for _, attributes, text in self.raw if attributes.get("id") == "figures"))


@pytest.fixture(scope="module")
def page(report_directory):
    return Page((report_directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory, write_evaluation, write_training):
    root = tmp_path_factory.mktemp("hostile")
    evaluations = [
        write_evaluation(
            root / arm,
            arm,
            0,
            correct=[[1, 0], [0, 1]],
            answers=[[HOSTILE, None], [None, "1"]],
            completions=HOSTILE,
            problem_ids=["a" + HOSTILE, "b"],
            prompts=[HOSTILE, "<a href='https://example.com'>b</a>"],
            hardware=HOSTILE + arm,
            versions={HOSTILE: HOSTILE},
        )
        for arm in ("grpo", "progrpo")
    ]
    trainings = [
        write_training(root / f"t-{arm}", arm, rows=[{"train/reward": 0.1}], train={"uri": HOSTILE + arm})
        for arm in ("grpo", "progrpo")
    ]
    compare(QUICK, evaluations=evaluations, trainings=trainings, output=root / "out")
    return root / "out"


def test_nothing_is_fetched(page):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert "url(" not in attributes.get("style", "")
    styles = [text for tag, _, text in page.raw if tag == "style"]
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_the_policy_names_every_script_and_forbids_the_network(page):
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy  # falls back to default-src: none
    assert len(re.findall(r"'sha256-[^']+'", policy)) == 2
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_plotly_is_inlined_once(page):
    scripts = [text for tag, attributes, text in page.raw if tag == "script" and "type" not in attributes]
    assert len(scripts) == 2
    assert "plotly.js v" in scripts[0][:100]


def test_every_plot_has_a_place_a_name_and_words(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    plots = {a["id"]: a for tag, a in page.tags if tag == "div" and "plot" in a.get("class", "").split()}
    assert set(plots) == set(page.figures)
    assert {"pass-at-k", "train-entropy", "train-reward", "train-arm-prompt-confidence", "per-problem"} <= set(plots)
    for attributes in plots.values():
        assert attributes["role"] == "img"
        assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= set(ids)


def test_an_arm_has_one_colour_in_every_plot(page):
    colours = {}
    for figure in page.figures.values():
        for trace in figure["data"]:
            colour = (trace.get("marker") or {}).get("color") or trace.get("line", {}).get("color")
            if trace.get("name"):
                colours.setdefault(trace["name"], set()).add(colour)
    assert set(colours) == {"start", "grpo", "progrpo", "progrpo-gated"}
    assert all(len(used) == 1 for used in colours.values())
    assert len(set.union(*colours.values())) == 4


def test_prompts_show_on_hover(page):
    texts = [text for trace in page.figures["per-problem"]["data"] for text in trace.get("text") or ()]
    assert any("Using 3, 1 and 7, reach 11." in text for text in texts)


def test_hostile_text_stays_text(hostile_report):
    page = Page((hostile_report / "report.html").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in page.tags) == 4  # two of them data
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]
    shown = "".join(page.text)
    assert HOSTILE in shown  # as it is: neither dropped, nor rendered, nor a template
    assert "uri is" in shown  # a warning carries it too
    # Plotly reads tags in figure text, so there it is escaped a second time.
    for trace in page.figures["per-problem"]["data"]:
        for text in trace.get("text") or ():
            assert not re.search(r"<(?!br>)", text)


def test_hostile_text_does_not_run(hostile_report, chromium):
    dom = chromium.dump_dom(hostile_report / "report.html")
    assert "<title>Comparison with grpo</title>" in dom
    assert 'class="main-svg"' in dom  # the page's own scripts did run


@pytest.mark.parametrize("dark", [False, True])
def test_every_plot_is_drawn_without_a_network(report_directory, page, chromium, dark):
    dom = chromium.dump_dom(report_directory / "report.html", dark=dark)
    drawn = {}
    for piece in dom.split("<figure>")[1:]:
        chart_id = re.search(r'<div id="([^"]+)" class="plot', piece).group(1)
        drawn[chart_id] = piece.split("</figure>")[0]
    assert set(drawn) == set(page.figures)
    for chart_id, piece in drawn.items():
        assert 'class="main-svg"' in piece, chart_id
        assert re.search(r'class="(trace bars|trace scatter)', piece), chart_id
        ink = "rgb(228, 231, 235)" if dark else "rgb(31, 35, 40)"
        assert ink in piece, chart_id


def test_the_report_says_what_is_not_resolved(tmp_path, write_evaluation):
    base = write_evaluation(tmp_path / "a", "grpo", correct=[[1], [0], [0], [1]])
    arm = write_evaluation(tmp_path / "b", "progrpo", correct=[[0], [1], [0], [1]])
    compare(QUICK, evaluations=[base, arm], trainings=[], output=tmp_path / "out")
    comparison = read_comparison(tmp_path / "out")
    (sentence,) = tables.headline_sentences(comparison)
    assert re.fullmatch(
        r"progrpo minus grpo: pass@1 0\.0 points \[−[\d.]+, \+[\d.]+\], not resolved \(the interval includes 0\); "
        r"entropy \S+ nats \[\S+, \S+\], (not )?resolved.*\.",
        sentence,
    )
    shown = "".join(Page((tmp_path / "out" / "report.html").read_text()).text)
    assert sentence in shown
    assert sentence in tables.markdown_summary(comparison)
    assert "| progrpo | Pass@1 (%) |" in tables.markdown_summary(comparison)


def test_one_arm_alone_has_a_report(tmp_path, write_evaluation):
    start = write_evaluation(tmp_path / "a", "start", None, correct=[[1, 0]])
    compare(
        CompareConfig(baseline="start", num_resamples=100), evaluations=[start], trainings=[], output=tmp_path / "o"
    )
    comparison = read_comparison(tmp_path / "o")
    assert tables.headline_sentences(comparison) == ["start is the only arm; there is nothing to compare it with."]
    assert "per-problem" not in Page((tmp_path / "o" / "report.html").read_text()).figures


def test_headline_table(report_directory):
    comparison = read_comparison(report_directory)
    assert comparison.headline_ks == (1, 4, 8)
    assert tables.headline_columns(comparison) == [
        "Pass@1 (%)", "Pass@4 (%)", "Pass@8 (%)", "Entropy (nats)", "Distinct correct", "Wall time per seed",
    ]  # fmt: skip
    rows = tables.headline_table(comparison)
    assert [(row.arm, row.is_baseline) for row in rows] == [
        ("start", False), ("grpo", True), ("progrpo", False), ("progrpo-gated", False),
    ]  # fmt: skip
    at_1 = comparison.arm("grpo").metrics["eval/pass_at_1"]
    assert rows[1].cells[0].value == f"{100 * at_1.value:.1f}"
    assert rows[1].cells[0].interval == f"[{100 * at_1.low:.1f}, {100 * at_1.high:.1f}]"
    assert rows[0].cells[-1].value.endswith("(evaluation)")


@pytest.mark.parametrize(
    ("ks", "shown"),
    [((1,), (1,)), ((1, 2, 4, 8, 16, 32), (1, 8, 32)), ((1, 2, 4), (1, 2, 4)), ((1, 3, 5, 7), (1, 5, 7))],
)
def test_headline_ks(report_directory, ks, shown):
    assert read_comparison(report_directory).model_copy(update={"ks": ks}).headline_ks == shown


@pytest.mark.parametrize(
    ("value", "text"), [(0.0234, "+2.3"), (-0.0234, "−2.3"), (0.0001, "0.0"), (-0.0001, "0.0"), (1.0, "+100.0")]
)
def test_points_have_a_sign_unless_they_round_to_zero(value, text):
    difference = Difference(value=value, low=value - 1, high=value + 1, resolved=False)
    assert tables.difference_cell("eval/pass_at_8", difference).value == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (43, "43 s"), (720, "12 min"), (7500, "2 h 05 min"), (90_000, "25 h 00 min")]
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_importing_loads_no_plotting_library():
    code = (
        "import sys, progrpo.comparison.compare, progrpo.comparison.tables;"
        "print([m for m in ('matplotlib', 'plotly', 'jinja2', 'torch', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
