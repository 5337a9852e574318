"""Run the containers of a rendered manifest as processes here: same commands and environment, other paths."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charts.helm import Pod, Release, pods

START_S = 180


@dataclass
class Machine:
    """This machine in place of a cluster.

    Attributes:
        release: the rendered manifests.
        root: where the volumes' files go.
        names: what a text of the manifest becomes here: a path, a host or an address. Longest first.
        programs: the program behind a command's first word.
        others: ConfigMaps and Secrets that are not of this release: their entries by name.
    """

    release: Release
    root: Path
    names: Mapping[str, str]
    programs: Mapping[str, str]
    others: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def pod(self, name: str) -> Pod:
        """Return a pod by ``Kind/name``."""
        return next(pod for pod in pods(self.release.manifests) if pod.name == name)

    def here(self, text: str) -> str:
        """Return a text of the manifest with the names of this machine."""
        names = {**self.names, str(self.root): str(self.root)}  # a path of this machine stays
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.sub(pattern, lambda match: names[match[0]], text)

    def argv(self, words: Sequence[str]) -> list[str]:
        """Return a command as it runs here."""
        return [self.programs[words[0]], *map(self.here, words[1:])]

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Return a container's variables, secrets included; of this machine's only what finds programs and modules."""
        own = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        values = {variable["name"]: self._value(variable) for variable in container.get("env", ())}
        return own | {name: value for name, value in values.items() if value is not None}

    def _value(self, variable: Mapping[str, Any]) -> str | None:
        if "value" in variable:
            return self.here(variable["value"])
        ((kind, reference),) = variable["valueFrom"].items()
        if reference.get("optional"):
            return self.others.get(reference["name"], {}).get(reference["key"])
        assert kind == "secretKeyRef"
        data = self.release.one("Secret", reference["name"])["data"]
        return base64.b64decode(data[reference["key"]]).decode()

    def write_config_maps(self, pod: Pod) -> None:
        """Write the files that the pod mounts from ConfigMaps."""
        mounts = {m["name"]: m["mountPath"] for c in pod.containers for m in c.get("volumeMounts", ())}
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                directory = Path(self.here(mounts[volume["name"]]))
                directory.mkdir(parents=True, exist_ok=True)
                for name, text in self.release.one("ConfigMap", volume["configMap"]["name"])["data"].items():
                    (directory / name).write_text(self.here(text))

    def run(
        self, container: Mapping[str, Any], words: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a container, or as ``kubectl exec`` does other words in it, to the end."""
        words = words or [*container.get("command", ()), *container.get("args", ())]
        return subprocess.run(
            self.argv(words),
            env=self.environment(container) | options.pop("env", {}),
            cwd=options.pop("cwd", self.root),
            capture_output=True,
            timeout=START_S,
            check=False,
            **options,
        )

    def start(self, container: Mapping[str, Any], **options: Any) -> subprocess.Popen[bytes]:
        """Start a container and wait until its startup probe succeeds."""
        log = self.root / f"{container['name']}.log"
        words = [*container.get("command", ()), *container.get("args", ())]
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.argv(words),
                env=self.environment(container),
                cwd=options.pop("cwd", self.root),
                stdout=file,
                stderr=file,
                start_new_session=True,
                **options,
            )
        self._running.append(process)
        deadline = time.monotonic() + START_S
        while not self.probe(container, "startupProbe"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{container['name']} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        return process

    def probe(self, container: Mapping[str, Any], name: str) -> bool:
        """Do what the kubelet does for a probe."""
        probe = container[name]
        if "exec" in probe:
            return self.run(container, probe["exec"]["command"]).returncode == 0
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        with suppress(OSError):
            url = f"http://127.0.0.1:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
            with urllib.request.urlopen(url, timeout=10) as response:
                return 200 <= response.status < 400
        return False

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and those it started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._running.remove(process)

    def close(self) -> None:
        """End everything and delete the files."""
        for process in reversed(self._running[:]):
            self.stop(process)
        shutil.rmtree(self.root, ignore_errors=True)


def installed(name: str) -> str:
    """Return a program of this Python environment."""
    return sys.executable if name == "python" else str(Path(sys.executable).with_name(name))
