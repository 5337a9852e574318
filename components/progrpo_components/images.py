"""Names and tags of the component images, in this one place.

The registry is read when a pipeline is compiled (``progrpo compile --registry``); the tag is the package's version, so
a compiled pipeline runs the code it was compiled from.
"""

from __future__ import annotations

import os

from progrpo import __version__

REGISTRY_VARIABLE = "PROGRPO_IMAGE_REGISTRY"
DEFAULT_REGISTRY = "localhost/progrpo"  # images built on the machine itself; a cluster needs its own registry

_registry = os.environ.get(REGISTRY_VARIABLE, DEFAULT_REGISTRY).rstrip("/")

CPU = f"{_registry}/progrpo-cpu:{__version__}"
GPU = f"{_registry}/progrpo-gpu:{__version__}"
