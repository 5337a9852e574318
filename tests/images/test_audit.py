"""scripts/audit.py: the real pip-audit on the real locks, against a database with planted advisories."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))
import audit  # noqa: E402

LOCK = "images/progrpo-cpu/requirements.lock"


def pinned(name: str) -> str:
    return re.search(rf"^{name}==(\S+)", (REPOSITORY / LOCK).read_text(), re.MULTILINE)[1]


def advisory(identity: str, package: str, *, versions=(), events=(), **more) -> dict:
    of_range = {"type": "ECOSYSTEM", "events": list(events)}
    affected = {"package": {"ecosystem": "PyPI", "name": package}, "versions": list(versions), "ranges": [of_range]}
    return {"id": identity, "details": "planted", "modified": "2026-01-01T00:00:00Z", "affected": [affected], **more}


@pytest.fixture
def database(tmp_path):
    """Return a function that makes a clone with these advisories."""

    def make(*advisories: dict) -> Path:
        clone = tmp_path / "advisories"
        for planted in advisories:
            folder = clone / "vulns" / planted["affected"][0]["package"]["name"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{planted['id']}.yaml").write_text(yaml.safe_dump(planted))
        name = ["-c", "user.name=t", "-c", "user.email=t@t"]
        for arguments in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "planted"]):
            subprocess.run(["git", "-C", clone, *arguments], check=True)
        return clone

    return make


def test_a_planted_vulnerability_is_found_and_one_that_was_fixed_is_not(database, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "LOCKS", (LOCK,))
    clone = database(
        advisory("PYSEC-2026-1", "certifi", versions=[pinned("certifi")], aliases=["CVE-2026-1"]),
        advisory("PYSEC-2026-2", "boto3", events=[{"introduced": "0"}, {"fixed": pinned("boto3")}]),
        advisory("PYSEC-2026-3", "click", versions=[pinned("click")], withdrawn="2026-02-01T00:00:00Z"),
        advisory("PYSEC-2026-4", "requests", events=[{"introduced": "0"}, {"last_affected": pinned("requests")}]),
    )
    assert audit.main(["--advisories", str(clone), "--report", str(tmp_path / "audit.md")]) == 1
    text = (tmp_path / "audit.md").read_text()
    assert text == capsys.readouterr().out
    assert re.search(r"PyPA advisory database at \w+ of \d{4}-\d\d-\d\d \(without GitHub", text)
    assert re.search(rf"\| `{LOCK}` \| \d\d+ \| 2 \|", text)
    assert f"| certifi {pinned('certifi')} | PYSEC-2026-1, CVE-2026-1 | none |" in text
    assert f"| requests {pinned('requests')} | PYSEC-2026-4 |" in text
    assert "boto3" not in text
    assert "click" not in text


def test_nothing_known_is_exit_code_0(database, monkeypatch, capsys):
    monkeypatch.setattr(audit, "LOCKS", (LOCK,))
    assert audit.main(["--advisories", str(database(advisory("PYSEC-2026-1", "left-pad", versions=["1"])))]) == 0
    assert " 0 |" in capsys.readouterr().out


def test_what_cannot_be_audited_is_never_a_pass(database, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "LOCKS", (LOCK,))
    assert audit.main(["--advisories", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    broken = database(advisory("PYSEC-2026-1", "certifi", events=[{"introduced": "no version"}]))
    assert audit.main(["--advisories", str(broken)]) == 2
    assert "pip-audit failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "events", "expected"),
    [
        ("1.0", [{"introduced": "0"}], True),
        ("1.0", [{"introduced": "0"}, {"fixed": "1.0"}], False),
        ("1.0rc1", [{"introduced": "0"}, {"fixed": "1.0"}], True),
        ("1.0", [{"introduced": "0"}, {"last_affected": "1.0"}], True),
        ("1.0.1", [{"introduced": "0"}, {"last_affected": "1.0"}], False),
        ("2.5", [{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "2.0"}, {"fixed": "3.0"}], True),
        ("1.5", [{"fixed": "3.0"}, {"introduced": "2.0"}, {"fixed": "1.0"}, {"introduced": "0"}], False),
        ("2.13.0+cpu", [{"introduced": "0"}, {"last_affected": "2.13.0"}], True),
    ],
)
def test_ranges_are_those_of_osvs_schema(version, events, expected):
    assert audit.is_affected(advisory("X", "Some_Package", events=events), "some-package", version) is expected


@pytest.mark.parametrize(
    ("listed", "version"), [("2026.01.04", "2026.1.4"), ("1.0", "1.0.0"), ("2.13.0", "2.13.0+cpu")]
)
def test_a_version_is_found_however_it_is_written(listed, version):
    assert audit.is_affected(advisory("X", "p", versions=["not a version", listed]), "p", version)


def test_a_folder_is_found_however_its_package_is_written(database):
    clone = audit.Advisories(database(advisory("PYSEC-2026-1", "jw.util", versions=["1"])))
    assert [found["id"] for found in clone.query("jw-util", "1")] == ["PYSEC-2026-1"]


def test_a_proxy_does_not_stand_between_the_two(database, monkeypatch, capsys):
    monkeypatch.setattr(audit, "LOCKS", (LOCK,))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_AUDIT_OUTPUT", "elsewhere.json")
    planted = advisory("PYSEC-2026-1", "certifi", versions=[pinned("certifi")])
    assert audit.main(["--advisories", str(database(planted))]) == 1
    assert "PYSEC-2026-1" in capsys.readouterr().out


def test_pins_of_either_python_are_audited():
    pins = audit.pins_of((REPOSITORY / "images/progrpo-gpu/requirements-cpu.lock").read_text())
    assert sum(pin.startswith("contourpy==") for pin in pins) == 2
    assert [len({pin.partition("==")[0] for pin in part}) == len(part) for part in audit._without_repeats(pins)]
