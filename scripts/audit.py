"""Audit every pin of the lock files for known vulnerabilities with pip-audit.

    python scripts/audit.py                             ask OSV's service
    python scripts/audit.py --advisories DIR            ask a clone of the PyPA advisory database, without a network
    python scripts/audit.py ... --report docs/audit.md  and write what was found

``--advisories`` takes a clone of https://github.com/pypa/advisory-database (also a bare one). That is less than OSV
has: advisories that are in GitHub's database alone are missing, and so is what is newer than the clone, whose last
commit the report names. pip-audit asks as it asks OSV; it is answered here, on loopback, by the rule of OSV's schema
(https://ossf.github.io/osv-schema/#evaluation): a version is affected if it is listed, or lies in a range of type
ECOSYSTEM.

Exit code: 0, nothing known; 1, a vulnerability; 2, a pin that could not be audited or a database that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "images"))
from pins_for import main as pins_for  # noqa: E402

LOCKS = (
    "images/progrpo-cpu/requirements.lock",
    "images/progrpo-gpu/requirements.lock",
    "images/progrpo-gpu/requirements-cpu.lock",
    "requirements.lock",
)
PYTHONS = ("3.11", "3.12")


class AuditError(Exception):
    """What stops an audit; its text says what to do."""


@dataclass(frozen=True)
class Advisories:
    """A clone of the PyPA advisory database, read through git, so that it needs no work tree."""

    clone: Path

    def last_commit(self) -> str:
        """Return the commit and its date.

        Raises:
            AuditError: not such a clone.
        """
        if not self._folders():
            raise AuditError(f"{self.clone} has no vulns/: give a clone of https://github.com/pypa/advisory-database.")
        return self._git("log", "-1", "--format=%h of %cs", "HEAD").strip()

    def query(self, name: str, version: str) -> list[dict[str, Any]]:
        """Return the advisories of one version of one package, as OSV's service would."""
        found = self._of(self._folders().get(canonicalize_name(name)))
        return [
            advisory for advisory in found if not advisory.get("withdrawn") and is_affected(advisory, name, version)
        ]

    @cache  # noqa: B019  # one clone a process
    def _folders(self) -> dict[str, str]:
        paths = self._git("ls-tree", "-d", "--name-only", "HEAD", "vulns/").splitlines()
        return {canonicalize_name(path.removeprefix("vulns/")): path for path in paths}

    def _of(self, folder: str | None) -> list[dict[str, Any]]:
        paths = self._git("ls-tree", "--name-only", "HEAD", f"{folder}/").splitlines() if folder else []
        texts = [self._git("show", f"HEAD:{path}") for path in paths]
        # Times as text, as in the service's JSON.
        return [yaml.load(text, Loader=_TextTimes) for text in texts]  # noqa: S506  # a safe loader

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.clone), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AuditError(f"{self.clone} cannot be read: {done.stderr.strip()}")
        return done.stdout


class _TextTimes(yaml.SafeLoader):
    """YAML's safe loader without the type for times."""


_TextTimes.yaml_implicit_resolvers = {
    key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def is_affected(advisory: Mapping[str, Any], name: str, version: str) -> bool:
    """Say whether an advisory in OSV's schema is about this version."""
    mine, wanted = Version(Version(version).public), canonicalize_name(name)  # 2.13.0+cpu is a build of 2.13.0
    for affected in advisory.get("affected", ()):
        if canonicalize_name(affected["package"]["name"]) != wanted:
            continue
        if any(mine == listed for listed in map(_version, affected.get("versions", ()))):
            return True
        for of_range in affected.get("ranges", ()):
            if of_range["type"] == "ECOSYSTEM" and _in_range(mine, of_range["events"]):
                return True
    return False


def _version(text: str) -> Version | None:
    """Return a listed version; None: not one that a pin could have."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _in_range(version: Version, events: Sequence[Mapping[str, str]]) -> bool:
    """Go through the events in the order of their versions; the last one that holds decides."""
    inside = False
    for event in sorted(events, key=lambda event: Version(next(iter(event.values())))):
        ((kind, text),) = event.items()
        if kind == "introduced" and version >= Version(text):
            inside = True
        elif (kind == "fixed" and version >= Version(text)) or (kind == "last_affected" and version > Version(text)):
            inside = False
    return inside


@contextmanager
def osv_service(advisories: Advisories) -> Iterator[str]:
    """Answer OSV's query on loopback; yield the URL."""
    ask = cache(advisories.query)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = 200, {"vulns": ask(query["package"]["name"], query["version"])}
            except Exception as error:  # the audit must fail, not pass for want of an answer
                status, answer = 500, {"error": [str(error)]}
            body = json.dumps(answer if answer.get("vulns") or status != 200 else {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def pins_of(lock: str) -> list[str]:
    """Return the pins of a lock that hold on Linux, for any of our Pythons."""
    entries = {
        pin.partition(" \\\n")[0]
        for python in PYTHONS
        for pin in pins_for(python, lock).split("\n")
        if pin[:1].isalnum()
    }
    return sorted(entry.split(" ")[0] for entry in entries)


def audit(pins: Sequence[str], url: str | None) -> list[dict[str, Any]]:
    """Return pip-audit's verdict on each pin: name, version, vulns.

    Raises:
        AuditError: pip-audit fails, or leaves out a pin.
    """
    found: list[dict[str, Any]] = []
    for part in _without_repeats(pins):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "requirements.txt"
            file.write_text("\n".join(part))
            command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
            command += ["--vulnerability-service", "osv", *(["--osv-url", url] if url else []), "--cache-dir", scratch]
            command += ["--format", "json", "--desc", "off", "--requirement", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(url))
        try:
            found += json.loads(done.stdout)["dependencies"]
        except ValueError:
            raise AuditError(f"pip-audit failed: {done.stderr.strip()[-1000:]}") from None
    skipped = [f"{pin['name']} ({pin['skip_reason']})" for pin in found if "skip_reason" in pin]
    if skipped or len(found) != len(pins):
        raise AuditError(
            f"{len(found) - len(skipped)} of {len(pins)} pins were audited. Left out: {', '.join(skipped)}"
        )
    return found


def _without_repeats(pins: Sequence[str]) -> list[list[str]]:
    """Split pins so that no part has two of one package, as a lock for two Pythons may."""
    parts: list[list[str]] = []
    for pin in pins:
        name = pin.partition("==")[0]
        part = next((part for part in parts if all(other.partition("==")[0] != name for other in part)), None)
        parts.append([pin]) if part is None else part.append(pin)
    return parts


def _environment(url: str | None) -> dict[str, str]:
    """No setting of pip-audit's from outside, and no proxy between it and this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_AUDIT_")}
    return {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} if url else kept


def report(results: Mapping[str, Sequence[Mapping[str, Any]]], source: str) -> str:
    """Return the audit as Markdown."""
    lines = [
        "# Audit of the lock files",
        "",
        f"`make audit`, {datetime.now(UTC):%Y-%m-%d}, pip-audit {version_of('pip-audit')}, {source}.",
        "",
        f"Pins that hold on Linux with Python {' or '.join(PYTHONS)}.",
        "",
        "| lock | pins audited | with a known vulnerability |",
        "|---|---|---|",
    ]
    rows = []
    for lock, pins in results.items():
        hit = [pin for pin in pins if pin["vulns"]]
        lines.append(f"| `{lock}` | {len(pins)} | {len(hit)} |")
        rows += [
            f"| `{lock}` | {pin['name']} {pin['version']} | {', '.join([vuln['id'], *vuln['aliases']])} "
            f"| {', '.join(vuln['fix_versions']) or 'none'} |"
            for pin in hit
            for vuln in pin["vulns"]
        ]
    if rows:
        lines += ["", "| lock | pin | advisory | fixed in |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Example: git clone the database, then --advisories DIR."
    )
    parser.add_argument("--advisories", type=Path, metavar="DIR", help="a clone of the PyPA advisory database")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the audit as Markdown")
    options = parser.parse_args(arguments)
    try:
        source = "OSV's service"
        if options.advisories is not None:
            advisories = Advisories(options.advisories)
            source = f"PyPA advisory database at {advisories.last_commit()} (without GitHub's own advisories)"
        with osv_service(advisories) if options.advisories is not None else nullcontext() as url:
            results = {lock: audit(pins_of((REPOSITORY / lock).read_text(encoding="utf-8")), url) for lock in LOCKS}
        text = report(results, source)
        print(text, end="")
        if options.report is not None:
            options.report.write_text(text, encoding="utf-8")
    except (AuditError, OSError, InvalidRequirement) as error:
        print(f"audit.py: {error}", file=sys.stderr)
        return 2
    return int(any(pin["vulns"] for pins in results.values() for pin in pins))


if __name__ == "__main__":
    sys.exit(main())
