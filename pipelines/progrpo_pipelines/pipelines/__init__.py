"""The four pipelines, a module each."""
