"""Errors of clusters and pipelines; the library's are in :mod:`progrpo.errors`."""

from __future__ import annotations

from progrpo.errors import ProGRPOError


class ClusterError(ProGRPOError, RuntimeError):
    """A Kubernetes cluster that cannot be reached, refuses, or lacks what is needed."""


class PipelineError(ProGRPOError, RuntimeError):
    """A pipeline whose task failed; the message carries the task's own error."""


class PromotionError(PipelineError):
    """A candidate that the gate does not let pass, or that could not be registered."""
