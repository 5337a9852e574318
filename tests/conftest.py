"""Shared by all tests: the embedded checkpoint, a small dataset, one CPU thread, and what a session makes once."""

import os
from pathlib import Path

import pytest

import shared
from preloaded import preloaded_python
from repetitions import left_out

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PROGRPO_TRACKING", "off")


def pytest_configure(config: pytest.Config) -> None:
    """Open the folder of what the workers share, in the process that runs the session."""
    if not hasattr(config, "workerinput"):
        shared.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started for all workers, when they have ended, also after an error or Ctrl-C."""
    if not hasattr(config, "workerinput"):
        shared.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this session did less often than it could."""
    if sentence := left_out():
        terminalreporter.write_line(sentence)


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that starts at once, for programs that are not tested as processes (tests/preloaded.py)."""
    return preloaded_python()


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
