"""The Markdown that a run wrote, such as the comparison table, read from the object store if that is within reach."""

from __future__ import annotations

from typing import Any

from progrpo.errors import ProGRPOError
from progrpo.storage import s3_client, split_s3_uri
from progrpo_pipelines.client.api import Notify
from progrpo_pipelines.client.package import Package

SUMMARY = "summary"
"""Name of the Markdown artifacts that say what a run came to; other cards are for the UI."""
_MAX_BYTES = 256 * 1024


def read_cards(run: Any, package: Package, pipeline_root: str | None, notify: Notify) -> list[str]:
    """Return the summaries that a run wrote; none where the store is not known, and never an error.

    KFP 2.15-2.17 has no call that hands out an artifact, but the driver writes every one to
    ``ROOT/PIPELINE/RUN_ID/TASK/SALT/NAME`` (``provisionOutputs`` in its ``driver.go``).

    Args:
        run: a V2beta1Run that has ended.
        package: its pipeline.
        pipeline_root: where its artifacts lie; absent: as the run says. Only S3 is read, with the AWS_ variables.
        notify: told why there is nothing.
    """
    root = pipeline_root or (run.runtime_config and run.runtime_config.pipeline_root) or ""
    root = root.partition("?")[0].rstrip("/")
    if root.startswith("minio://"):  # KFP's name for an S3 store that AWS_ENDPOINT_URL names
        root = "s3://" + root.removeprefix("minio://")
    if not root.startswith("s3://"):
        return []
    cards = []
    try:
        with s3_client(root) as client:
            for name in [task.name for task in package.tasks() if SUMMARY in task.markdown]:
                bucket, key = split_s3_uri(f"{root}/{package.name}/{run.run_id}/{name}/")
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
                found = [item for page in pages for item in page.get("Contents", ())]
                named = [item for item in found if item["Key"].rpartition("/")[2] == SUMMARY]
                for item in sorted(named, key=lambda item: str(item["Key"])):
                    if item["Size"] <= _MAX_BYTES:
                        body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                        cards.append((item["LastModified"], body.decode("utf-8", "replace")))
    except ProGRPOError as error:
        notify(f"the run's own summary is left out: {error}")
    return [card for _, card in sorted(cards, key=lambda card: card[0], reverse=True)]  # what was concluded comes first
