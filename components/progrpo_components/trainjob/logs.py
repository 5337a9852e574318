"""The log of the first node, as it is written; a stream that breaks is taken up where it broke."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from urllib3.exceptions import HTTPError

from progrpo_components.errors import ClusterError
from progrpo_components.trainjob.cluster import Cluster
from progrpo_components.trainjob.job import NODE

logger = logging.getLogger(__name__)

RECONNECT_S = 2.0
JOIN_S = 5.0


class LogFollower:
    """Shows each line of a pod's log once, from a thread.

    Kubernetes takes whole seconds for where to start, and gives each line with its time in nanoseconds: lines up to the
    last one shown are passed over. A line that was cut off comes again, whole.
    """

    def __init__(self, cluster: Cluster, show: Callable[[str], None], *, reconnect_s: float = RECONNECT_S) -> None:
        self._cluster, self._show, self._reconnect_s = cluster, show, reconnect_s
        self._pod: str | None = None
        self._last = self._warned = ""
        self._changed = threading.Condition()
        self._ended = False
        self._showing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log of the first node", daemon=True)

    def follow(self, pod: str) -> None:
        """Show this pod's log from its start; one that is followed already goes on."""
        with self._changed:
            if pod == self._pod:
                return
            if self._pod is not None:
                logger.info("the first node was restarted as %s", pod)
            self._pod, self._last = pod, ""
            self._changed.notify_all()
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Show nothing more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Show what has not been shown yet of a pod that has ended."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)  # it may sit in a stream that neither ends nor speaks
        if self._pod is not None:
            self._read(self._pod, follow=False)

    def _run(self) -> None:
        while not self._ended:
            self._read(self._pod or "", follow=True)
            with self._changed:
                if not self._ended:
                    self._changed.wait(self._reconnect_s)

    def _read(self, pod: str, *, follow: bool) -> None:
        since = f"{self._last[:19]}Z" if self._last else None
        try:
            response = self._cluster.open_log(pod, NODE, since=since, follow=follow)
        except ClusterError as error:
            if str(error) != self._warned:
                logger.warning("the log of the first node is not shown: %s", error)
            self._warned = str(error)
            return
        self._warned = ""
        if response is None:
            return
        with suppress(HTTPError, OSError):
            self._take(pod, response, is_last=not follow)
        response.close()

    def _take(self, pod: str, lines: Iterable[bytes], *, is_last: bool) -> None:
        for line in lines:
            with self._showing:
                if pod != self._pod or (self._ended and not is_last):
                    return
                if not line.endswith(b"\n") and not is_last:
                    return  # cut off
                time, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
                key = _sortable(time)
                if key > self._last:
                    self._last = key
                    self._show(text)


def _sortable(time: str) -> str:
    """Return a time with nine digits of a second: Kubernetes leaves out zeros at the end."""
    seconds, _, fraction = time.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
