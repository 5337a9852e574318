"""Fixtures shared by all tests: the embedded checkpoint, a small dataset, one CPU thread."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PROGRPO_TRACKING", "off")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_checkpoint(tmp_path_factory) -> Path:
    """The embedded SFT checkpoint, imported as every pipeline imports it."""
    from progrpo.checkpoints.importer import import_checkpoint
    from progrpo.config import CheckpointConfig

    output = tmp_path_factory.mktemp("checkpoint") / "countdown-sft"
    import_checkpoint(CheckpointConfig(uri="embedded://countdown-sft"), output)
    return output


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """64 training and 16 held-out countdown problems."""
    from progrpo.config import CountdownSource, DatasetConfig
    from progrpo.data.prepare import prepare_dataset

    output = tmp_path_factory.mktemp("dataset") / "countdown"
    prepare_dataset(DatasetConfig(source=CountdownSource(num_train=64, num_eval=16, seed=0)), output)
    return output


@pytest.fixture(scope="session")
def require_all() -> bool:
    """Whether a missing system package is a failure (CI) instead of a skip."""
    return os.environ.get("PROGRPO_REQUIRE_ALL") == "1"
