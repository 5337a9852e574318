"""Measure a checkpoint on held-out problems: Pass@k, entropy, variety, each with an interval."""
