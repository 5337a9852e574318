"""Datasets: from files or a generator to the dataset artifact, and from there to problems."""
