"""What may be shown and named: messages without secrets, names that MLflow takes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from progrpo.redaction import redact

KEY_LENGTH, PARAM_LENGTH = 250, 6000  # mlflow.utils.validation: what a server refuses, and with it the whole batch
_LEGAL_NAME = re.compile(r"\w[/\w.\- :]*")


def is_legal_name(name: str) -> bool:
    """Whether MLflow takes this as the name of a metric, a param or a tag."""
    # MLflow keeps metrics under their name as a path.
    return bool(_LEGAL_NAME.fullmatch(name)) and len(name) <= KEY_LENGTH and os.path.normpath(name) == name


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings as MLflow's params: nested keys joined with dots, None left out, other values as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def describe_error(error: Exception) -> str:
    """Return type and first line of an error, without passwords, and without what a server quotes of a request.

    A server that refuses a value repeats it in its message; of those only the code is kept.
    """
    code = getattr(error, "error_code", None)
    if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
        return f"{type(error).__name__}: {code}"
    lines = str(error).partition("Response body:")[0].strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0][:300] if lines else ''}")
