"""Which extra of progrpo (pyproject.toml) brings a module that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from progrpo.errors import ConfigError

EXTRAS: dict[str, tuple[str, ...]] = {
    "submit": ("kfp_server_api", "google", "kfp.pipeline_spec"),
    "compile": ("kfp.dsl",),  # kfp-pipeline-spec by itself is a kfp without it
    "cluster": ("kubernetes",),
    "mlflow": ("mlflow",),
    "steps": ("numpy", "boto3", "pyarrow", "scipy", "jinja2", "plotly", "matplotlib"),
    "train": ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "safetensors", "math_verify"),
    "gpu": ("vllm",),
    "ability": ("lm_eval",),
}
"""Modules by the extra that brings them; ``local`` brings all but the last two."""


def need(*extras: str) -> None:
    """Refuse to begin what needs ``extras``, before anything is made.

    Raises:
        ConfigError: a module of theirs is not installed.
    """
    for extra in extras:
        for module in EXTRAS[extra]:
            if not _is_there(module):
                raise ConfigError(_missing(module, "local" if len(extras) > 1 else extra))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def explain(error: ModuleNotFoundError) -> str | None:
    """Return what is to be installed; None if no extra brings the module that was not found."""
    name = error.name or ""
    for extra, modules in EXTRAS.items():
        if any(name == module or name.startswith(f"{module}.") for module in modules):
            return _missing(name, extra)
    return None


def _missing(module: str, extra: str) -> str:
    return f"{module.partition('.')[0]} is not installed, which this needs. Try: pip install 'progrpo[{extra}]'"
