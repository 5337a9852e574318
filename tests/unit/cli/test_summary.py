"""What is printed after a run, as far as it can be known without one."""

import shlex

import pytest

from progrpo_pipelines.local.summary import mlflow_command


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ana:s3cret@mlflow.example", "https://***@mlflow.example"),
        ("postgresql+psycopg2://ana:s3cret@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
    ],
)
def test_a_password_in_the_tracking_uri_is_not_printed(uri, shown):
    assert mlflow_command(uri) == shown


def test_the_command_can_be_pasted_whatever_the_directory_is_called():
    words = shlex.split(mlflow_command("sqlite:////home/my runs/mlflow.db"))
    assert words[words.index("--backend-store-uri") + 1] == "sqlite:////home/my runs/mlflow.db"
    assert words[words.index("--artifacts-destination") + 1] == "/home/my runs/mlartifacts"
