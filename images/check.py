"""Refuse an image whose base and whose additions do not belong together: python check.py, at the end of its build."""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module, metadata

# Tested together, exactly; vLLM, too, where the base has it.
EXACT = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "math-verify", "vllm")
IMPORTED = ("progrpo.training.trainer", "progrpo_components.steps", "progrpo_pipelines.cli")


def main() -> list[str]:
    """Return what is wrong."""
    pins = dict(
        text.partition(";")[0].replace("==", " ").split()
        for text in metadata.requires("progrpo") or ()
        if "==" in text.partition(";")[0] and "[" not in text
    )
    found: Counter[str] = Counter(d.metadata["Name"].lower() for d in metadata.distributions())
    wrong = [f"{found[name]} copies of {name}; the base's must be the only one" for name in EXACT if found[name] > 1]
    for name in EXACT:
        if name == "vllm" and not found[name]:
            continue
        there = metadata.version(name) if found[name] else "none"
        if there.partition("+")[0] != pins[name]:
            wrong.append(f"{name} {there}, but progrpo was tested with {pins[name]}")
    if not wrong:
        for name in IMPORTED:
            import_module(name)
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(main()) or None)
