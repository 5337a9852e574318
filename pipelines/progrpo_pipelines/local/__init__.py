"""Run a pipeline on this machine."""
