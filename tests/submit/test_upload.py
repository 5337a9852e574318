"""``progrpo upload`` and ``submit --upload``: named versions, uploaded once."""

from pathlib import Path

import pytest

from kfp_recorder import API, Fault
from progrpo import __version__

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
UPLOAD = f"{API}/pipelines/upload_version"


def uploads(recorder) -> list[str]:
    return [request.query["name"] for request in recorder.requests if request.path == UPLOAD]


@pytest.fixture
def changed(tmp_path, package_path) -> Path:
    """The small package with another default, under its own file name."""
    text = Path(package_path).read_text()
    path = tmp_path / "evaluate-smoke.yaml"
    path.write_text(text.replace("defaultValue: progrpo", "defaultValue: another"))
    assert path.read_text() != text
    return path


def test_second_upload_does_nothing(recorder, progrpo):
    files = [str(COMPILED / f"{name}.yaml") for name in ("evaluate-smoke", "evaluate", "compare")]
    first = progrpo("upload", *files, "--version", "1.0")
    assert first.code == 0, first.err
    assert first.out.splitlines() == ["evaluate 1.0-smoke: created", "evaluate 1.0: created", "compare 1.0: created"]
    before = len(recorder.posted("/pipelines")), uploads(recorder)
    second = progrpo("upload", *files, "--version", "1.0", "--json")
    assert [item["action"] for item in second.json] == ["unchanged"] * 3
    assert (len(recorder.posted("/pipelines")), uploads(recorder)) == before == (2, ["1.0-smoke", "1.0", "1.0"])


def test_version_does_not_change_its_content(recorder, progrpo, package_path, changed):
    progrpo("upload", package_path, "--version", "1.0")
    done = progrpo("upload", str(changed), "--version", "1.0")
    assert done.code == 2
    assert "has a version 1.0-smoke with other content" in done.err
    assert len(recorder.versions) == 1


def test_without_a_version_the_content_names_it(recorder, progrpo, package_path, changed):
    for path in (package_path, str(changed), package_path):
        assert progrpo("upload", path).code == 0
    assert len(recorder.versions) == 2
    assert all(name.startswith(f"{__version__}-smoke-") for name in uploads(recorder))


def test_version_that_somebody_else_uploaded_is_compared_by_content(recorder, progrpo, package_path, changed):
    progrpo("upload", package_path, "--version", "1.0")
    next(iter(recorder.versions.values()))["description"] = "uploaded in the UI"
    assert progrpo("upload", package_path, "--version", "1.0").out == "evaluate 1.0-smoke: unchanged\n"
    assert progrpo("upload", str(changed), "--version", "1.0").code == 2


@pytest.mark.parametrize("path", ["/pipelines$", "/pipelines/upload_version$"])
def test_answer_that_was_lost(recorder, progrpo, package_path, path):
    recorder.faults = [Fault("POST", path, cut="after")]
    assert progrpo("upload", package_path).code == 0
    assert (len(recorder.pipelines), len(recorder.versions)) == (1, 1)


def test_api_error(recorder, progrpo, package_path):
    recorder.token = "needed"
    done = progrpo("upload", package_path)
    assert done.code == 5
    assert "401" in done.err


def test_nothing_is_uploaded_if_one_file_is_wrong(recorder, progrpo, package_path, tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1")
    assert progrpo("upload", package_path, str(tmp_path / "x.yaml")).code == 2
    assert recorder.requests == []


def test_same_version_twice_in_one_call(progrpo, package_path, changed):
    done = progrpo("upload", package_path, str(changed), "--version", "1")
    assert done.code == 2
    assert "are both pipeline evaluate, version 1-smoke" in done.err


def test_run_of_an_uploaded_version(recorder, submit):
    assert submit("--upload").code == 0
    assert submit("--upload").code == 0
    first, second = recorder.posted("/runs")
    (version,) = recorder.versions.values()
    assert len(uploads(recorder)) == 1
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    assert first["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert "pipeline_spec" not in first


def test_namespace_goes_with_every_request(recorder, submit):
    recorder.multi_user = True
    assert submit("--upload", "--namespace", "team").code == 0
    assert recorder.posted("/pipelines")[0]["namespace"] == "team"
    assert recorder.posted("/experiments")[0]["namespace"] == "team"
