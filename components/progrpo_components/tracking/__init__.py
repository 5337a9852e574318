"""Metrics to MLflow, without MLflow being able to fail or slow down a step.

A step writes what it has to say into a *spool*, a file beside its output, and goes on; it neither imports mlflow nor
waits for a server. A process of its own, the *sender*, reads the spool and delivers it. What a server did not take
stays in the spool, and ``progrpo track sync`` delivers it later; nothing arrives twice.

    place     which run a step logs into, from its parameters and its environment
    spool     the file between the step and the sender
    tracker   what a step holds
    delivery  from a spool to a server, once
    lineage   what of an artifact people read there: completions, files, the model
    sender    the process that delivers while a step runs
    runs      finding, making and ending runs on a server
    sync      delivering what was left
"""

from progrpo_components.tracking.place import SWITCH, Place, is_off, locate
from progrpo_components.tracking.runs import close_runs, connect, runs_of_pipeline
from progrpo_components.tracking.text import describe_error, is_legal_name
from progrpo_components.tracking.tracker import Tracker, open_tracking

__all__ = [
    "SWITCH",
    "Place",
    "Tracker",
    "close_runs",
    "connect",
    "describe_error",
    "is_legal_name",
    "is_off",
    "locate",
    "open_tracking",
    "runs_of_pipeline",
]
