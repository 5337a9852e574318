"""Compile the pipelines to KFP packages: each as it is, and once per preset with the preset as its defaults."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import yaml

from progrpo.config import PIPELINES
from progrpo.manifest import write_atomic
from progrpo.storage import make_directory
from progrpo_pipelines.presets import arguments_of, preset_names, resolve


def load_pipeline(name: str) -> Any:
    """Return the KFP pipeline called ``name``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # a Python version's end of life
        if name == "compare":
            from progrpo_pipelines.compare import compare as pipeline
        elif name == "evaluate":
            from progrpo_pipelines.evaluate import evaluate as pipeline
        else:
            from progrpo_pipelines.train_and_evaluate import train_and_evaluate as pipeline
    return pipeline


def compile_pipeline(name: str, output: Path, *, preset: str | None = None) -> Path:
    """Write one compiled pipeline into the directory ``output`` and return its path."""
    path = output / (f"{name}.yaml" if preset is None else f"{name}-{preset}.yaml")
    arguments = arguments_of(resolve(name, preset=preset))
    make_directory(output, name=f"--output {output}")
    pipeline = load_pipeline(name)

    from kfp import compiler

    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=arguments)
    write_atomic(path, _with_sorted_header(path.read_text(encoding="utf-8")))
    return path


def compile_all(output: Path) -> list[Path]:
    """Write every pipeline, and every pipeline with every preset, into ``output``."""
    return [
        compile_pipeline(name, output, preset=preset)
        for name in sorted(PIPELINES)
        for preset in (None, *preset_names())
    ]


def _with_sorted_header(text: str) -> str:
    """Rewrite the parameters in kfp's header comment: it prints structs in an order that changes with every process."""
    lines = text.splitlines(keepends=True)
    body = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    parameters = yaml.load("".join(lines[body:]).split("\n---\n")[0], Loader=yaml.CSafeLoader)["root"][
        "inputDefinitions"
    ]
    defaults = {name: spec.get("defaultValue") for name, spec in parameters["parameters"].items()}
    for i, line in enumerate(lines[:body]):
        start, found, _ = line.partition(" [Default: ")
        name = start.removeprefix("#").strip().partition(":")[0]
        if found and name in defaults:
            lines[i] = f"{start} [Default: {json.dumps(defaults[name], sort_keys=True)}]\n"
    return "".join(lines)
