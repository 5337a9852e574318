"""The four pipelines, a module each."""

NAMES = ("compare", "evaluate", "prepare", "train-and-evaluate")
"""As in :data:`progrpo_components.settings.PIPELINES`, whose settings take a fifth of a second to be read."""
