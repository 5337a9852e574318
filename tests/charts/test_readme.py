"""Chart READMEs say what values.yaml says, and no value goes unexplained."""

import importlib.util
import sys

import pytest

from charts.helm import CHARTS

_SPEC = importlib.util.spec_from_file_location("chart_readme", CHARTS / "readme.py")
generator = sys.modules["chart_readme"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generator)


@pytest.mark.parametrize("chart", sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml")))
def test_the_readme_is_up_to_date(chart):
    assert (CHARTS / chart / "README.md").read_text() == generator.readme(CHARTS / chart), "run python charts/readme.py"


VALUES = """\
# -- First
# line | second
a: 1
section: # no row of its own
  # A heading, no explanation.

  # -- In a section
  b: []
# -- One row for all
# of it
whole:
  c: 1
"""


def test_comments_become_rows(tmp_path):
    (tmp_path / "values.yaml").write_text(VALUES)
    assert generator.table(generator.rows(tmp_path / "values.yaml")).splitlines()[2:] == [
        "| `a` | `1` | First line \\| second |",
        "| `section.b` | `[]` | In a section |",
        '| `whole` | `{"c": 1}` | One row for all of it |',
    ]


def test_a_value_without_a_comment_is_an_error(tmp_path):
    (tmp_path / "values.yaml").write_text(VALUES + "d:\n  e: 2\n")
    with pytest.raises(generator.CommentError, match=r"d\.e has no comment"):
        generator.rows(tmp_path / "values.yaml")
