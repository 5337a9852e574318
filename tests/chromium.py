"""A headless Chromium without a network, for tests of pages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# One unknown host for every name, so that a page that needs the network cannot look whole.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@dataclass(frozen=True)
class Chromium:
    """An installed Chromium; every call is a new process with a new profile."""

    binary: str

    def dump_dom(self, page: Path, *, dark: bool = False) -> str:
        """Load a file and return its document after its scripts ran."""
        return self._run("--dump-dom", page=page, dark=dark)

    def screenshot(self, page: Path, image: Path, *, width: int, height: int, dark: bool = False) -> None:
        """Load a file and write a PNG of its top ``height`` pixels."""
        self._run(f"--window-size={width},{height}", f"--screenshot={image}", page=page, dark=dark)

    def print_pdf(self, page: Path, pdf: Path) -> None:
        """Print a file to PDF."""
        self._run("--no-pdf-header-footer", f"--print-to-pdf={pdf}", page=page, dark=False)

    def _run(self, *action: str, page: Path, dark: bool) -> str:
        with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
            command = [
                self.binary,
                *_FLAGS,
                f"--user-data-dir={profile}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                "--virtual-time-budget=10000",
                *action,
                page.resolve().as_uri(),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout


def find_chromium() -> Chromium | None:
    """Return the installed Chromium, None if there is none."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return Chromium(binary) if binary else None
