"""A headless Chromium without a network, for tests of pages."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One unknown host for every name, so that a page that needs the network cannot look whole; servers of tests are here.
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
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
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

    def open_tab(self) -> AbstractContextManager[Tab]:
        """Start a browser with one tab, which ends with the context."""
        return _open_tab(self.binary)

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


class Tab:
    """A page that is open: ask it, click it, look at it. Speaks the DevTools protocol over a pipe, without a port.

    Attributes:
        requests: the URL of everything the page asked for, its own file included.
        errors: uncaught exceptions and errors on the console.
    """

    def __init__(self, writer: int, reader: int) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._writer, self._reader, self._ids, self._buffer = writer, reader, itertools.count(1), b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, page: Path | str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file, or the URL of a server on 127.0.0.1, and wait until it has loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol !== 'about:'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise AssertionError(done["exceptionDetails"])
        return done["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise AssertionError(f"still false after {seconds} s: {expression}; errors: {self.errors}")
            time.sleep(0.05)

    def click(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window and press its left button there."""
        place = {"x": x, "y": y}
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        time.sleep(0.4)  # Plotly looks for the point under the mouse, and takes clicks within 300 ms for a double click
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def type(self, selector: str, text: str) -> None:
        """Type into the first element that a CSS selector finds."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self._call("Input.insertText", text=text)

    def screenshot(self, image: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        done = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        image.write_bytes(base64.b64decode(done["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._reader, 1 << 20)
            if not block:
                raise AssertionError("chromium has ended")
            self._buffer += block
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])


@contextmanager
def _open_tab(binary: str) -> Iterator[Tab]:
    commands, writer = os.pipe()
    reader, answers = os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4: keep ours out of the way.
    theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (commands, answers)]
    os.close(commands)
    os.close(answers)
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [binary, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=lambda: [os.dup2(descriptor, place) for descriptor, place in zip(theirs, (3, 4), strict=True)],
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for descriptor in theirs:
            os.close(descriptor)
        try:
            yield Tab(writer, reader)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(writer)
            os.close(reader)


def find_chromium() -> Chromium | None:
    """Return the installed Chromium, None if there is none."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return Chromium(binary) if binary else None
