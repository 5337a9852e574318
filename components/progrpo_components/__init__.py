"""Thin KFP components over :mod:`progrpo`, one folder a step, and the MLflow adapter."""
