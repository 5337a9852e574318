"""The ``kfp run submit`` lines of the docs name parameters that their packages have."""

import re
import shlex
from pathlib import Path

import pytest

from progrpo_pipelines.packaging.reference import parameters_of

ROOT = Path(__file__).parents[2]
LINES = [
    (path.name, line)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for line in re.findall(
        r"^    kfp [^\n]*run submit[^\n]*\.yaml(?:[^\n]*\\\n)*[^\n]*", path.read_text(), re.MULTILINE
    )
]


@pytest.mark.parametrize(("document", "line"), LINES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(LINES)])
def test_the_line_fits_its_package(document, line):
    words = shlex.split(line.replace("\\\n", " "), comments=True)
    (package,) = [ROOT / word for word in words if word.endswith(".yaml")]
    given = {word.partition("=")[0] for word in words if re.match(r"\w+=", word)}
    parameters = parameters_of(package)
    assert given <= set(parameters), document
    assert {name for name, spec in parameters.items() if "defaultValue" not in spec} <= given, document


def test_there_is_such_a_line():
    assert {"README.md", "ci.md", "pipelines.md"} <= {name for name, _ in LINES}
