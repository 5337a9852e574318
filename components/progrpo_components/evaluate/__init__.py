"""Measure a checkpoint on the held-out problems."""
