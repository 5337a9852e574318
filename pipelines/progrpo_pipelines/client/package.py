"""A compiled pipeline: its IR, its parameters, and values given to them, checked before anything is sent."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from progrpo.errors import ConfigError
from progrpo_pipelines.packaging.presets import read_mapping

_KINDS = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a list, such as [0, 1]",
    "STRUCT": "a mapping, such as {key: value}",
}
_MAX_BYTES = 32 * 2**20  # what the API server takes (kfp_server_api: upload_pipeline)


@dataclass(frozen=True)
class Parameter:
    """A parameter of the pipeline, as the IR declares it."""

    name: str
    type: str
    required: bool
    literals: tuple[Any, ...] = ()

    @property
    def kind(self) -> str:
        """What may be given, in words."""
        return f"one of {', '.join(map(str, self.literals))}" if self.literals else _KINDS.get(self.type, self.type)

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` means; a text stays as it is written, whatever it looks like."""
        if self.type == "STRING":
            return self.check(text)
        if self.type == "BOOLEAN" and text.strip().lower() in ("true", "false"):
            return text.strip().lower() == "true"
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            if self.type not in ("LIST", "STRUCT"):  # YAML would read the number 010 as 8, and 1e-6 as a text
                raise self._wrong(text) from None
            try:
                value = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError):
                raise self._wrong(text) from None
        return self.check(value)

    def check(self, value: Any) -> Any:
        """Return ``value`` in the parameter's own type.

        Raises:
            ConfigError: it is none of that type, or not among the literals.
        """
        if self.type == "NUMBER_DOUBLE" and isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value)  # YAML 1.1 takes 1e-06 for a text
        number = isinstance(value, int | float) and not isinstance(value, bool)
        finite = number and abs(value) <= sys.float_info.max  # what JSON and protobuf can carry; false for NaN
        if self.type == "NUMBER_INTEGER" and finite and int(value) == value:
            value = int(value)
        elif self.type == "NUMBER_DOUBLE" and finite:
            value = float(value)
        else:
            types: dict[str, type] = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}
            if self.type not in types or not isinstance(value, types[self.type]) or not _is_json(value):
                raise self._wrong(value)
        if self.literals and value not in self.literals:
            raise self._wrong(value)
        return value

    def _wrong(self, value: Any) -> ConfigError:
        hint = " Write it in quotes." if self.type == "STRING" and not isinstance(value, str | dict | list) else ""
        return ConfigError(f"parameter {self.name} is {self.kind}; given was {_shown(value)}.{hint}")


@dataclass(frozen=True)
class Task:
    """A task of the pipeline that runs in a container.

    Attributes:
        name: in the IR, and of its nodes in the workflow.
        title: what the UI calls it.
        repeated: whether it stands in a loop.
        outputs: types of the artifacts that it writes, such as system.Markdown, by name.
        template: Argo's template of its pod, which the pod's name holds.
    """

    name: str
    title: str
    repeated: bool = False
    outputs: Mapping[str, str] = field(default_factory=dict)
    template: str = ""


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: of the file, which need not exist any more.
        content: of the file.
        name: of the pipeline.
        document: what the API takes as ``pipeline_spec``.
        parameters: of the pipeline, by name.
    """

    path: Path
    content: bytes = field(repr=False)
    name: str
    document: dict[str, Any] = field(repr=False)
    parameters: dict[str, Parameter]

    @property
    def spec(self) -> dict[str, Any]:
        """The PipelineSpec alone, without what is special to Kubernetes."""
        spec: dict[str, Any] = self.document.get("pipeline_spec", self.document)
        return spec

    @property
    def images(self) -> set[str]:
        """Of its tasks."""
        executors = self.spec.get("deploymentSpec", {}).get("executors", {}).values()
        return {str(executor["container"]["image"]) for executor in executors if "container" in executor}

    @property
    def digest(self) -> str:
        """SHA-256 of the document."""
        return digest_of(self.document)

    def tasks(self) -> list[Task]:
        """Return the tasks that run in a container, wherever in the pipeline they are."""
        components = self.spec.get("components", {})
        found: dict[str, Task] = {}

        def walk(dag: Mapping[str, Any], repeated: bool) -> None:
            for name, task in dag.get("dag", {}).get("tasks", {}).items():
                component = components.get(task.get("componentRef", {}).get("name"), {})
                inside = repeated or "parameterIterator" in task or "artifactIterator" in task
                if "executorLabel" in component:
                    artifacts = component.get("outputDefinitions", {}).get("artifacts", {}).items()
                    outputs = {key: value["artifactType"].get("schemaTitle", "") for key, value in artifacts}
                    template = self._template(component["executorLabel"], retried="retryPolicy" in task)
                    title = task.get("taskInfo", {}).get("name") or name
                    found[name] = Task(name, title, inside, outputs, template)
                else:
                    walk(component, inside)

        walk(self.spec["root"], repeated=False)
        return list(found.values())

    def _template(self, executor: str, *, retried: bool) -> str:
        """Name of a pod's template (``addContainerExecutorTemplate`` in KFP's ``container.go``, 2.17.0)."""
        kubernetes = self.document.get("platform_spec", {}).get("platforms", {}).get("kubernetes", {})
        metadata = kubernetes.get("deploymentSpec", {}).get("executors", {}).get(executor, {}).get("podMetadata")
        counts = [len((metadata or {}).get(key, {})) for key in ("annotations", "labels")]
        prefix = "" if metadata is None else f"metadata-{counts[0]}-{counts[1]}-"
        return f"{prefix}{'retry-' * retried}system-container-impl"

    def training_runs(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return arm and seed of each training run, in the order of the loop; none where the pipeline is not ours.

        The order is validate-inputs': seed by seed and arm by arm.
        """
        from progrpo_components.form import read_form
        from progrpo_components.validation import training_of

        dags = [component.get("dag", {}) for component in self.spec.get("components", {}).values()]
        task = next(
            (dag["tasks"]["validate-inputs"] for dag in dags if "validate-inputs" in dag.get("tasks", {})), None
        )
        if task is None:
            return []
        inputs = task.get("inputs", {}).get("parameters", {})
        pipeline, preset = (
            inputs.get(key, {}).get("runtimeValue", {}).get("constant") for key in ("pipeline", "preset")
        )
        declared = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        form = {name: entry["defaultValue"] for name, entry in declared.items() if "defaultValue" in entry}
        try:
            arms, seeds, _ = training_of(read_form(pipeline, {**form, **arguments}, preset or {}))
        except ConfigError:  # validate-inputs will say so
            return []
        return [f"{arm.name}, seed {seed}" for seed in seeds for arm in arms]

    def without_cache(self) -> Package:
        """Return the same pipeline with caching off in every task; kfp's own option forgets the tasks inside loops."""
        document: dict[str, Any] = json.loads(json.dumps(self.document))
        spec = document.get("pipeline_spec", document)
        for dag in [spec["root"], *spec.get("components", {}).values()]:
            for task in dag.get("dag", {}).get("tasks", {}).values():
                task.setdefault("cachingOptions", {}).pop("enableCache", None)
        return replace(self, document=document)

    def arguments(self, settings: Sequence[str] = (), params_file: Path | None = None) -> dict[str, Any]:
        """Return the checked arguments that ``name=value`` settings and a file give; settings win.

        Raises:
            ConfigError: every wrong, unknown or missing parameter, in one message.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        if params_file is not None:
            self._take(read_mapping(params_file), values, problems, lambda parameter, value: parameter.check(value))
        texts: dict[str, str] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name.strip():
                problems.append(f"--set {setting}: expected NAME=VALUE, such as --set experiment=my-experiment.")
            else:
                texts[name.strip()] = text
        self._take(texts, values, problems, lambda parameter, text: parameter.parse(text))
        missing = [name for name, parameter in self.parameters.items() if parameter.required and name not in values]
        if missing and not problems:
            problems.append(f"{', '.join(missing)}: must be given, as there is no default. Give --set NAME=VALUE.")
        if problems:
            raise ConfigError("\n  ".join([f"{self.path}: the arguments do not fit the pipeline:", *problems]))
        return values

    def check_arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments that are already values, checked in the same way."""
        checked: dict[str, Any] = {}
        problems: list[str] = []
        self._take(values, checked, problems, lambda parameter, value: parameter.check(value))
        if problems:
            raise ConfigError("\n  ".join([f"{self.path}: the arguments do not fit the pipeline:", *problems]))
        return checked

    def _take(self, given: Mapping[str, Any], values: dict[str, Any], problems: list[str], read: Any) -> None:
        for name, value in given.items():
            if name not in self.parameters:
                problems.append(self._unknown(name))
                continue
            try:
                values[name] = read(self.parameters[name], value)
            except ConfigError as error:
                problems.append(str(error))

    def _unknown(self, name: str) -> str:
        from progrpo_components.form import PATHS

        names = sorted(self.parameters)
        stem, dot, _ = name.partition(".")
        if field_ := next(
            (field_ for field_, path in PATHS.items() if path == name and field_ in self.parameters), None
        ):
            return f"{name}: unknown parameter. The form calls it {field_}: give --set {field_}=VALUE."
        whole = f"{name}: a package takes whole parameters. Give"
        if dot and stem in self.parameters:
            return f"{whole} --set '{stem}={{...}}', or name a pipeline instead."
        if dot and "overrides" in self.parameters:
            keys = name.split(".")
            nested = "".join(f"{{{key}: " for key in keys) + "..." + "}" * len(keys)
            return f"{whole} --set 'overrides={nested}', or name a pipeline instead."
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{name}: unknown parameter. There are: {', '.join(names) or 'none'}.{hint}"


def load_package(path: Path) -> Package:
    """Read a compiled pipeline.

    Raises:
        ConfigError: no such file, not YAML, or not a compiled pipeline that this kfp understands.
    """
    try:
        content = path.read_bytes()
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than 32 MiB, which the API server refuses.")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        documents = [item for item in yaml.load_all(content.decode("utf-8"), Loader=loader) if item]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}. Give a pipeline compiled by: progrpo compile.") from None
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise ConfigError(f"{path} is no compiled pipeline: it has no pipelineInfo. Make one by: progrpo compile.")
    platform: dict[str, Any] = {}
    for document in documents[1:]:
        platform |= document
    try:
        document = normalized(documents[0], platform)
    except ValueError as error:
        raise ConfigError(f"{path} is no pipeline that this version of kfp understands: {error}.") from None
    spec = document.get("pipeline_spec", document)
    return Package(path, content, spec["pipelineInfo"]["name"], document, _parameters_of(spec))


def normalized(spec: Mapping[str, Any], platform: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API takes, through the protos as kfp does it, so that the request is the one kfp would send.

    Raises:
        ValueError: it is no PipelineSpec or no PlatformSpec.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2 as ir

    try:
        pipeline = json_format.MessageToDict(json_format.ParseDict(spec, ir.PipelineSpec()))
        platforms = json_format.MessageToDict(json_format.ParseDict(platform, ir.PlatformSpec()))
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None
    return {"pipeline_spec": pipeline, "platform_spec": platforms} if platforms else pipeline


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _parameters_of(spec: Mapping[str, Any]) -> dict[str, Parameter]:
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return {
        name: Parameter(
            name,
            entry.get("parameterType", "STRING"),
            required="defaultValue" not in entry and not entry.get("isOptional", False),
            literals=tuple(entry.get("literals", ())),
        )
        for name, entry in declared.items()
    }


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, dict) or all(isinstance(key, str) for key in value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
