"""What reaches the store of a training run's artifact."""

from progrpo.manifest import write_manifest
from progrpo_components.trainjob.artifacts import publish
from s3 import s3_server  # noqa: F401 - a fixture


def test_what_mlflow_lacks_is_published_and_no_other_hidden_file(s3_server, tmp_path, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="published")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    write_manifest(tmp_path, "training")
    (tmp_path / ".tracking-train-grpo-0.jsonl").write_text("{}\n")
    (tmp_path / ".other.tmp").write_text("")
    publish(tmp_path, "s3://published/run")
    listed = s3_server.client().list_objects_v2(Bucket="published")["Contents"]
    names = sorted(item["Key"] for item in listed)
    assert names == ["run/.tracking-train-grpo-0.jsonl", "run/manifest.json", "run/metrics.jsonl"]
