"""Compile the pipelines to KFP packages: each as it is, and once per preset with the preset as its defaults."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from progrpo import __version__
from progrpo.manifest import write_atomic
from progrpo.storage import make_directory
from progrpo_components.form import FIELDS
from progrpo_components.settings import PIPELINES
from progrpo_pipelines.extras import need
from progrpo_pipelines.packaging.presets import form_defaults, preset_names, preset_parameters
from progrpo_pipelines.packaging.target import Target

_DEFAULT = Target()


def load_pipeline(name: str, preset: str | None = None, target: Target = _DEFAULT) -> Any:
    """Return the KFP pipeline called ``name``, with what ``preset`` says as settings it brings along."""
    need("compile")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # a Python version's end of life
        module = import_module(f"progrpo_pipelines.pipelines.{name.replace('-', '_')}")
        brought = {} if preset is None else preset_parameters(preset, name)
        if not target.trainjobs:
            brought.pop("trainjob", None)
        return module.build(brought, replace(target, pipeline=name))


def compile_pipeline(
    name: str, output: Path, *, preset: str | None = None, target: Target = _DEFAULT, kubernetes_manifests: bool = False
) -> Path:
    """Write one compiled pipeline into the directory ``output`` and return its path.

    Args:
        name: of the pipeline.
        output: directory; made if it is absent.
        preset: whose settings the package brings along, and whose values are the form's defaults.
        target: what is compiled for.
        kubernetes_manifests: write a Pipeline and a PipelineVersion to apply to a cluster, not a package to upload.
    """
    package = name if preset is None else f"{name}-{preset}"
    path = output / f"{package}.yaml"
    pipeline = load_pipeline(name, preset, target)
    make_directory(output, name=f"--output {output}")

    from kfp import compiler

    options: dict[str, Any] = {}
    if kubernetes_manifests:
        from kfp.compiler.compiler_utils import KubernetesManifestOptions

        version = re.sub(r"[^a-z0-9.-]", "-", f"{package}-{__version__}".lower())
        options["kubernetes_manifest_format"] = True
        options["kubernetes_manifest_options"] = KubernetesManifestOptions(
            pipeline_name=package, pipeline_version_name=version, include_pipeline_manifest=True
        )
    arguments = form_defaults(name, preset)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=arguments, **options)
    write_atomic(path, _finished(path.read_text(encoding="utf-8"), target))
    return path


def compile_all(output: Path, target: Target = _DEFAULT, *, kubernetes_manifests: bool = False) -> list[Path]:
    """Write every pipeline, and every pipeline with every preset, into ``output``."""
    return [
        compile_pipeline(name, output, preset=preset, target=target, kubernetes_manifests=kubernetes_manifests)
        for name in sorted(PIPELINES)
        for preset in (None, *preset_names())
    ]


def _finished(text: str, target: Target) -> str:
    """Rewrite what kfp 2.17.0 writes: with the literals it cannot say yet, and a header that does not change.

    It prints the structs of the header in an order that changes with every process.
    """
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    documents = list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    spec = next(spec for document in documents if (spec := _pipeline_spec(document)) is not None)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    if target.has_literals:
        for field in FIELDS:
            if field.literals and field.name in parameters:
                parameters[field.name]["literals"] = list(field.literals)
    return _with_sorted_header(header, parameters) + yaml.dump_all(documents, Dumper=yaml.CSafeDumper, sort_keys=True)


def _pipeline_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the pipeline spec in a document of a package or of manifests; None if it holds none."""
    if "root" in document:
        return document
    found: dict[str, Any] | None = document.get("spec", {}).get("pipelineSpec")
    return found


def _with_sorted_header(header: str, parameters: dict[str, Any]) -> str:
    defaults = {name: spec.get("defaultValue") for name, spec in parameters.items()}
    lines = header.splitlines(keepends=True)
    for i, line in enumerate(lines):
        start, found, _ = line.partition(" [Default: ")
        name = start.removeprefix("#").strip().partition(":")[0]
        if found and name in defaults:
            lines[i] = f"{start} [Default: {json.dumps(defaults[name], sort_keys=True)}]\n"
    return "".join(lines)
