"""Run a pipeline's tasks in containers: what ``progrpo run --runner docker`` adds to kfp's DockerRunner.

Each task runs in the image of its component, confined as a pod of the restricted Pod Security Standard is: as whoever
started it, with a root file system that cannot be written to and without capabilities.

kfp 2.17.0 by itself takes a container that has ended before it asked for the exit code for one that succeeded, which
3 of 25 failing ones did; it waits at most a minute without output; and it keeps an image's entry point before the
command, which Kubernetes replaces.
"""

from __future__ import annotations

import codecs
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from progrpo.errors import ConfigError
from progrpo_components.reporting import PROGRESS_DIR

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

Network = Literal["host", "none"]

RUN_LABEL = "progrpo.run"
SETTINGS_NAME = "containers.json"
GRACE_S = 5.0
_TIMEOUT_S = 600  # of a request; a busy disk can take longer than docker's minute to make a container

# What a task may know of the caller's environment: its services, their credentials, and what steers the libraries.
_PREFIXES = ("AWS_", "MLFLOW_", "PROGRPO_", "OMP_", "HF_HUB_")
_NAMES = {"PYTHONHASHSEED", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
_NAMES |= {name for word in ("HTTP", "HTTPS", "NO") for name in (f"{word}_PROXY", f"{word.lower()}_proxy")}
# Those that name a file, which is then mounted, and where it is if they are not set.
_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CA_BUNDLE": "",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": "",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH": "",
    "SSL_CERT_FILE": "",
    "REQUESTS_CA_BUNDLE": "",
}
# Process 1, the shell of kfp's command, ignores SIGTERM and ends when Python has.
_TERMINATE = ["sh", "-c", "kill -s TERM -- -1"]


@dataclass(frozen=True)
class ContainerSettings:
    """How the tasks of one run are put into containers; kept in the run's directory for its worker.

    Attributes:
        run: id that every container is labelled with.
        network: ``host`` reaches MLflow and S3 on this machine's loopback; ``none`` reaches nothing.
        readable: paths on this machine that tasks read.
        writable: paths that tasks write to, beside the artifacts.
    """

    run: str
    network: Network
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        """Keep them in a run's directory."""
        (directory / SETTINGS_NAME).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> ContainerSettings | None:
        """Return those of a run's directory; None if its tasks do not run in containers."""
        path = directory / SETTINGS_NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def check_images(images: Iterable[str]) -> None:
    """See that Docker answers and has the images; those of a registry are pulled.

    Raises:
        ConfigError: no Docker, or an image that is neither here nor in a registry.
    """
    from docker.errors import DockerException, ImageNotFound

    with _client() as client:
        for image in images:
            try:
                client.images.get(image)
            except ImageNotFound:
                if image.startswith("localhost/"):
                    raise ConfigError(
                        f"image {image} is not on this machine. Build it with `make images`, or name the registry "
                        f"that has it: --image-registry REGISTRY/FOLDER."
                    ) from None
                try:
                    client.images.pull(image)
                except DockerException as error:
                    raise ConfigError(
                        f"image {image} is not on this machine and cannot be pulled: {error}. "
                        f"Check --image-registry and docker login, or build it with `make images`."
                    ) from None


def inputs_of(arguments: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a run's arguments with absolute paths, and the paths: a container has another working directory.

    A checkpoint in a download cache consists of links, so what they point to is among the paths too.
    """
    paths: list[str] = []

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: walk(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [walk(item, key) for item in value]
        if not (isinstance(value, str) and value and (key == "uri" or key.endswith("_uri"))):
            return value
        if value.startswith("file://"):
            value = unquote(urlsplit(value).path)
        if "://" in value:
            return value
        path = Path(value).expanduser().absolute()
        entries = path.iterdir() if path.is_dir() else [path]
        paths.extend(map(str, (path, *{entry.resolve().parent for entry in entries if entry.is_symlink()})))
        return str(path)

    return walk(arguments), tuple(dict.fromkeys(paths))


def environment_of(caller: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what a task's environment takes over from the caller's, and the files that it names."""
    files = {name: Path(caller.get(name) or place).expanduser() for name, place in _FILES.items()}
    found = {name: str(path.absolute()) for name, path in files.items() if path.is_file()}
    taken = {name: value for name, value in caller.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return {name: value for name, value in taken.items() if name not in _FILES} | found, tuple(found.values())


class ContainerTasks:
    """Stands in for kfp.local's function that runs one container.

    Args:
        directory: of the run; a task's progress and temporary files are below.
        settings: of the run.
        environment: of the caller.
        gpu_image: tasks in this image are given the GPUs, where Docker has NVIDIA's runtime.
    """

    def __init__(
        self, directory: Path, settings: ContainerSettings, environment: Mapping[str, str], gpu_image: str = ""
    ) -> None:
        self._directory, self._settings, self._gpu_image = directory, settings, gpu_image
        self._environment, files = environment_of(environment)
        readable = dict.fromkeys((*settings.readable, *files), "ro") | dict.fromkeys(settings.writable, "rw")
        self._volumes = {path: {"bind": path, "mode": mode} for path, mode in readable.items()}
        self._numbers = itertools.count(1)

    def run(
        self,
        client: DockerClient,
        image: str,
        command: Sequence[str],
        volumes: Mapping[str, Mapping[str, str]],
        **arguments: Any,
    ) -> int:
        """Run one container to its end, printing what it prints.

        Args:
            client: a Docker client.
            image: with a tag; it must be on this machine.
            command: replaces the image's entry point and command.
            volumes: further mounts, ``{path: {bind, mode}}``.
            arguments: of the task: ``environment``.

        Returns:
            The exit code, as Docker recorded it. Of one that was killed, 137.
        """
        from docker.errors import NotFound

        client.api.timeout = _TIMEOUT_S
        container, progress = self._create(client, image, command, volumes, **arguments)
        try:
            container.start()
            _print_logs(container)
            status = int(container.wait(timeout=None)["StatusCode"])
            if status:
                container.reload()
                text = _why(status, bool(container.attrs["State"].get("OOMKilled")))
                print(f"container of {image}: {text}", flush=True)
                _report_failure(progress, text)
            return status
        finally:
            with suppress(NotFound):  # whoever interrupted the run was faster
                container.remove(force=True, v=True)

    def _create(
        self,
        client: DockerClient,
        image: str,
        command: Sequence[str],
        volumes: Mapping[str, Mapping[str, str]],
        environment: Mapping[str, str] | None = None,
    ) -> tuple[Container, Path]:
        number = next(self._numbers)
        progress = self._directory / "progress" / f"{number:03d}"
        temporary = self._directory / "tmp" / f"{number:03d}"  # on disk: checkpoints are downloaded into it
        cache = self._directory / "tmp" / "cache"
        for path in (progress, temporary, cache):
            path.mkdir(parents=True, exist_ok=True)
        places = {str(progress): str(progress), str(temporary): "/tmp", str(cache): "/cache"}  # noqa: S108 # there
        own = {path: {"bind": place, "mode": "rw"} for path, place in places.items()}
        container = client.containers.create(
            image,
            entrypoint=list(command[:1]),
            command=list(command[1:]),
            environment={**(environment or {}), **self._environment, PROGRESS_DIR: str(progress)},
            volumes={**volumes, **self._volumes, **own},
            working_dir="/tmp",  # noqa: S108 # as kfp leaves files in it
            user=f"{os.getuid()}:{os.getgid()}",
            group_add=["0"],
            network_mode=self._settings.network,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            shm_size="1g",
            labels={RUN_LABEL: self._settings.run},
            device_requests=_gpus(client) if image == self._gpu_image else None,
        )
        return container, progress


def stop_containers(run: str) -> None:
    """End every container of a run: first its steps, which then close their MLflow runs, then what is left."""
    from docker.errors import APIError

    mark = {"label": f"{RUN_LABEL}={run}"}
    with _client() as client:
        for container in client.containers.list(filters=mark):
            with suppress(APIError):  # it has just ended
                container.exec_run(_TERMINATE, detach=True)
        deadline = time.monotonic() + GRACE_S
        while client.containers.list(filters=mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        for container in client.containers.list(all=True, filters=mark):
            with suppress(APIError):  # its worker was faster
                container.remove(force=True, v=True)


@contextmanager
def _client() -> Iterator[DockerClient]:
    try:
        import docker
    except ImportError:
        raise ConfigError("--runner docker needs the Python package docker. Install it: pip install docker.") from None
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise ConfigError(
            f"Docker does not answer at {os.environ.get('DOCKER_HOST', 'its default socket')}: {error}. "
            f"Start it, or set DOCKER_HOST; without Docker, leave --runner out."
        ) from None
    try:
        yield client
    finally:
        client.close()


def _gpus(client: DockerClient) -> list[Any] | None:
    from docker.types import DeviceRequest

    if "nvidia" not in client.info().get("Runtimes", {}):
        return None
    return [DeviceRequest(count=-1, capabilities=[["gpu"]])]


def _print_logs(container: Container) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may lie in two blocks
    for block in container.logs(stream=True, follow=True):
        print(decoder.decode(block), end="", flush=True)


def _why(status: int, out_of_memory: bool) -> str:
    if out_of_memory:
        return f"its container was killed for memory (exit code {status}). Make the step smaller, or give it more."
    if status == 137:
        return (
            "its container was killed (exit code 137); where nobody did that, the system did, out of memory. "
            "Make the step smaller, or see the log."
        )
    return f"its container ended with exit code {status} before the step could report an error of its own; see the log."


def _report_failure(progress: Path, text: str) -> None:
    """Say on behalf of a step what it could not say itself."""
    for path in progress.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        states = [state for line in lines if (state := json.loads(line).get("state"))]
        if states[-1:] == ["running"]:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"state": "failed", "error": text, "user_error": False}) + "\n")
