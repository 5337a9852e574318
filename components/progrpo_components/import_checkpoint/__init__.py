"""Bring in the checkpoint to start from, and check it."""
