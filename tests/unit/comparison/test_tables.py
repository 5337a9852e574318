"""Numbers as people read them, where rounding could mislead, and comparison.json of another version."""

import json

import pytest

from progrpo.comparison.result import Difference, read_comparison
from progrpo.comparison.tables import difference_cell
from progrpo.errors import ComparisonError, ManifestError
from progrpo.manifest import write_manifest


def difference(value: float, low: float, high: float) -> Difference:
    return Difference(value=value, low=low, high=high, resolved=low > 0 or high < 0)


@pytest.mark.parametrize(
    ("name", "numbers", "shown"),
    [
        ("eval/pass_at_8", (0.062, 0.014, 0.113), "+6.2 [+1.4, +11.3]"),
        ("eval/pass_at_8", (0.062, -0.0004, 0.113), "+6.2 [0.0, +11.3]"),  # includes 0: nothing to tell apart
        ("eval/pass_at_8", (0.062, 0.0004, 0.113), "+6.20 [+0.04, +11.30]"),
        ("eval/pass_at_8", (-0.062, -0.113, -0.00004), "−6.200 [−11.300, −0.004]"),
        ("eval/entropy", (0.02, 0.0003, 0.04), "+0.0200 [+0.0003, +0.0400]"),
        ("eval/pass_at_8", (0.062, 1e-12, 0.113), "+6.2000 [> 0, +11.3000]"),
        ("eval/pass_at_8", (-0.062, -0.113, -1e-12), "−6.2000 [−11.3000, < 0]"),
    ],
)
def test_an_interval_that_excludes_0_never_shows_it(name, numbers, shown):
    assert str(difference_cell(name, difference(*numbers))) == shown


def test_another_schema_version_is_named_and_not_its_fields(report_directory, tmp_path):
    content = json.loads((report_directory / "comparison.json").read_text())
    assert content["schema_version"] == 2
    for version, left_out in ((1, "gains"), (3, "arms")):
        directory = tmp_path / str(version)
        directory.mkdir()
        other = {key: value for key, value in content.items() if key != left_out} | {"schema_version": version}
        (directory / "comparison.json").write_text(json.dumps(other))
        write_manifest(directory, "comparison")
        with pytest.raises(ComparisonError, match=rf"has schema version {version}, .* reads 2\. Compare again"):
            read_comparison(directory)


def test_what_is_no_comparison_says_so(tmp_path):
    for number, text in enumerate(("[]", "no JSON", '{"schema_version": 2}')):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "comparison.json").write_text(text)
        write_manifest(directory, "comparison")
        with pytest.raises(ComparisonError, match=r"comparison\.json (is not a comparison|has schema version None)"):
            read_comparison(directory)
    with pytest.raises(ManifestError):
        read_comparison(tmp_path)
