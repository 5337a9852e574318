"""The completions of a problem: opened by a real click, shown as text, within the budget, nothing lost silently."""

import base64
import gzip
import json

import numpy as np
import pytest

from progrpo.comparison.compare import compare
from progrpo.comparison.drilldown import embed_completions, shorten
from progrpo.comparison.sources import read_evaluation
from progrpo.config import CompareConfig

QUICK = CompareConfig(num_resamples=100)
HOSTILE = "</script></pre><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><b>bold"
# The place on the screen of the point of one problem in the trace of one arm.
POINT = """(() => {
  const plot = document.getElementById("per-problem");
  plot.scrollIntoView();
  const { x, y } = plot._fullData.find((each) => each.name === "%s");
  const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
  return [box.x + xaxis._offset + xaxis.l2p(x[%d]), box.y + yaxis._offset + yaxis.l2p(y[%d])];
})()"""


def unpack(drilldown):
    return [
        problem for block in drilldown.blocks for problem in json.loads(gzip.decompress(base64.b64decode(block)))
    ]  # fmt: skip


@pytest.fixture
def arms(tmp_path, write_evaluation):
    """Return a function that writes and reads two arms with completions of its own."""

    def build(completions, correct, **settings):
        directories = {
            arm: write_evaluation(tmp_path / arm, arm, correct=correct, completions=completions, **settings)
            for arm in ("grpo", "progrpo")
        }
        return {arm: [read_evaluation(directory)] for arm, directory in directories.items()}

    return build


def test_everything_is_kept_where_there_is_room(arms):
    correct = np.array([[1, 0, 0], [0, 0, 0]])
    evaluations = arms([["a", "b", "b"], ["c", "d", "e"]], correct, prompts=["first?", "second?"])
    drilldown = embed_completions(evaluations, ["p0000", "p0001"])
    first, second = unpack(drilldown)
    assert first["prompt"] == "user: first?"
    # times, correct, tokens, cut off, answer, text; two equal completions are one row
    assert first["arms"] == [[[1, 1, 10, 0, "right", "a"], [2, 0, 10, 0, None, "b"]]] * 2
    assert [row[-1] for row in second["arms"][0]] == ["c", "d", "e"]


def test_problems_that_are_not_shown_are_left_out(arms):
    evaluations = arms([["a"], ["b"], ["c"]], [[1], [1], [0]])
    (only,) = unpack(embed_completions(evaluations, ["p0001"]))
    assert only["arms"][0][0][-1] == "b"


def test_what_does_not_fit_is_cut_but_one_correct_and_one_wrong_stay(arms):
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    texts = [["".join(rng.choice(letters, 3000)) + f" #{p}/{i}" for i in range(32)] for p in range(40)]
    correct = np.zeros((40, 32), bool)
    correct[:, 30] = True  # far behind what is kept
    evaluations = arms(texts, correct)
    ids = [f"p{p:04d}" for p in range(40)]
    drilldown = embed_completions(evaluations, ids, budget=200_000)
    assert sum(map(len, drilldown.blocks)) <= 200_000
    assert drilldown.max_completions < 32
    for p, problem in enumerate(unpack(drilldown)):
        for rows in problem["arms"]:
            assert sum(row[0] for row in rows) == drilldown.max_completions
            assert {row[1] for row in rows} == {0, 1}
            assert rows[-1][-1].endswith(f"#{p}/30")  # the end, where the answer stands, is kept
            assert rows[0][-1].startswith(texts[p][0][: drilldown.max_characters // 3])
            left_out = len(texts[p][0]) - drilldown.max_characters
            assert f"[…{left_out} characters left out…]" in rows[0][-1]


@pytest.mark.parametrize(("text", "limit", "short"), [
    ("abcdef", 6, "abcdef"), ("abcdefghi", 6, "ab […3 characters left out…] fghi"), ("abc", None, "abc"),
])  # fmt: skip
def test_shorten(text, limit, short):
    assert shorten(text, limit) == short


@pytest.mark.slow
def test_500_problems_with_32_long_completions_make_a_page_below_10_mb(tmp_path, write_evaluation):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(3000)]
    evaluations = []
    for arm in ("grpo", "progrpo"):
        places = rng.integers(len(words), size=(500, 32, 200))
        texts = [[" ".join(words[w] for w in row) for row in problem] for problem in places]
        correct = rng.random((500, 32)) < 0.4
        prompts = [text[0][:300] for text in texts]
        evaluations.append(
            write_evaluation(tmp_path / arm, arm, correct=correct, completions=texts, prompts=prompts)
        )  # fmt: skip
    compare(QUICK, evaluations=evaluations, trainings=[], output=tmp_path / "out")
    assert 6e6 < (tmp_path / "out" / "report.html").stat().st_size < 10e6


@pytest.fixture(scope="module")
def page(tmp_path_factory, write_evaluation):
    """A report of 10 problems, each with rates of its own so that no points overlap; every text is hostile."""
    root = tmp_path_factory.mktemp("page")
    correct = np.arange(10) < np.arange(10)[:, None]
    evaluations = [
        write_evaluation(
            root / arm,
            arm,
            correct=np.roll(correct, shift, axis=0),
            answers=HOSTILE,
            completions=[[f"{HOSTILE} {arm} {p}.{i}" for i in range(10)] for p in range(10)],
            prompts=[f"{HOSTILE} prompt {p}" for p in range(10)],
        )
        for arm, shift in (("grpo", 0), ("progrpo", 3))
    ]
    compare(QUICK, evaluations=evaluations, trainings=[], output=root / "out")
    return root / "out" / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_click_on_a_point_shows_the_completions_of_its_problem(page, chromium, width, dark):
    with chromium.open_tab() as tab:
        tab.open(page, width=width, dark=dark)
        tab.wait_for("document.querySelectorAll('#per-problem .scatterlayer .point').length >= 10")
        assert tab.evaluate("document.querySelectorAll('#problem-detail pre').length") == 0
        for problem in (4, 9):
            tab.click(*tab.evaluate(POINT % ("progrpo", problem, problem)))
            tab.wait_for(f"document.querySelector('#problem-detail code')?.textContent === 'p{problem:04d}'")
            texts = tab.evaluate("[...document.querySelectorAll('#problem-detail pre')].map((pre) => pre.textContent)")
            assert texts[0] == f"user: {HOSTILE} prompt {problem}"
            expected = [f"{HOSTILE} {arm} {problem}.{i}" for arm in ("grpo", "progrpo") for i in range(10)]
            assert texts[1:] == expected
            heads = tab.evaluate("[...document.querySelectorAll('#problem-detail .arms h3')].map((h) => h.textContent)")
            rate = 10 * problem
            assert heads == [f"grpo, {rate} % correct", f"progrpo, {10 * (problem - 3)} % correct"]
        assert tab.evaluate("document.getElementById('problem').value") == "9"
        assert tab.evaluate("document.querySelectorAll('#problem-detail img, #problem-detail b').length") == 0
        assert tab.evaluate("document.title") == "Comparison with grpo"
        # Nothing is wider than the window, so nothing scrolls sideways but tables in their own boxes.
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in tab.requests if not url.startswith(("file:", "blob:", "data:"))] == []
        assert [url for url in tab.requests if url.startswith("file:")] == [page.resolve().as_uri()]
        assert tab.errors == []


def test_a_problem_can_be_chosen_without_a_mouse_and_completions_filtered(page, chromium):
    choose = """(() => { const list = document.getElementById("%s"); list.value = "%s";
        list.dispatchEvent(new Event("change")); })()"""
    with chromium.open_tab() as tab:
        tab.open(page)
        tab.wait_for("document.getElementById('problem').options.length === 11")
        tab.evaluate(choose % ("problem", 4))
        tab.wait_for("document.querySelectorAll('#problem-detail .completion').length === 20")
        tab.evaluate(choose % ("which", "correct"))
        tab.wait_for("document.querySelectorAll('#problem-detail .completion').length === 5")  # 4 and 1 of 10
        assert tab.evaluate("document.querySelectorAll('#problem-detail .completion.right').length") == 5
        # Listed first: the problems on which the arms are farthest apart, 7 tenths.
        first = tab.evaluate("document.getElementById('problem').options[1].textContent")
        assert first == "p0000: grpo 0 %, progrpo 70 %"
        assert tab.errors == []
