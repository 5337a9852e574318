"""What a message must not say."""

from __future__ import annotations

import re


def redact(text: object) -> str:
    """Return a text without the user and password of any URI in it; a password may hold a slash or an @ of its own."""
    return re.sub(r"//\S*@", "//***@", str(text))
