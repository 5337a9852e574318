"""Names and tags of the component images, in this one place.

Read when a pipeline is compiled. The registry comes from ``progrpo compile --registry``; the tag is the package's
version, so a compiled pipeline runs the code it was compiled from. Variables that name whole images are taken as they
are: that is how ``charts/progrpo`` pins digests.
"""

from __future__ import annotations

import os

from progrpo import __version__

REGISTRY_VARIABLE = "PROGRPO_IMAGE_REGISTRY"
CPU_VARIABLE, GPU_VARIABLE = "PROGRPO_CPU_IMAGE", "PROGRPO_GPU_IMAGE"
DEFAULT_REGISTRY = "localhost/progrpo"  # images built on the machine itself; a cluster needs its own registry

_registry = os.environ.get(REGISTRY_VARIABLE, DEFAULT_REGISTRY).rstrip("/")

CPU = os.environ.get(CPU_VARIABLE) or f"{_registry}/progrpo-cpu:{__version__}"
GPU = os.environ.get(GPU_VARIABLE) or f"{_registry}/progrpo-gpu:{__version__}"
