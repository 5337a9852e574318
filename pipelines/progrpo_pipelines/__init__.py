"""The pipelines, their presets and the ``progrpo`` command: wiring only."""
