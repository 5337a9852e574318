"""Texts that a run wrote, such as the comparison table, read from the object store if that is within reach."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from progrpo.errors import ProGRPOError
from progrpo.storage import s3_client, split_s3_uri
from progrpo_pipelines.client.api import Notify
from progrpo_pipelines.client.package import Package
from progrpo_pipelines.extras import explain

SUMMARY = "summary"
"""Name of the Markdown artifacts that say what a run came to; other cards are for the UI."""
_LOGS = "executor-logs"  # launcher_v2.go; executor-logs-1 of the second attempt
_MAX_BYTES = 256 * 1024


def read_cards(run: Any, package: Package, pipeline_root: str | None, notify: Notify) -> list[str]:
    """Return the summaries that a run wrote, what was concluded first; see :func:`_read`."""
    names = [task.name for task in package.tasks() if task.outputs.get(SUMMARY) == "system.Markdown"]
    return _read(run, package, names, SUMMARY, pipeline_root, notify)


def read_logs(run: Any, package: Package, task: str, pipeline_root: str | None, notify: Notify) -> list[str]:
    """Return the logs of a task that the launcher kept (its setting PUBLISH_LOGS), the last one first."""
    return _read(run, package, [task], _LOGS, pipeline_root, notify)


def _read(
    run: Any, package: Package, tasks: Iterable[str], artifact: str, pipeline_root: str | None, notify: Notify
) -> list[str]:
    """Return the end of each text of that name, the last one first; none where the store is not known, never an error.

    KFP 2.15-2.17 has no call that hands out an artifact of a task (``artifacts/NAME:read`` knows Argo's own only), but
    the driver writes every one to ``ROOT/PIPELINE/RUN_ID/TASK/SALT/NAME`` (``provisionOutputs`` in its ``driver.go``).

    Args:
        run: a V2beta1Run that has ended.
        package: its pipeline.
        tasks: names of those that may have written it.
        artifact: name of the artifact.
        pipeline_root: where its artifacts lie; absent: as the run says. Only S3 is read, with the AWS_ variables.
        notify: told why there is nothing.
    """
    root = pipeline_root or (run.runtime_config and run.runtime_config.pipeline_root) or ""
    root = root.partition("?")[0].rstrip("/")
    if root.startswith("minio://"):  # KFP's name for an S3 store that AWS_ENDPOINT_URL names
        root = "s3://" + root.removeprefix("minio://")
    if not root.startswith("s3://"):
        return []
    texts = []
    try:
        with s3_client(root) as client:
            for task in tasks:
                bucket, key = split_s3_uri(f"{root}/{package.name}/{run.run_id}/{task}/")
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
                found = [item for page in pages for item in page.get("Contents", ())]
                named = re.compile(rf".*/{re.escape(artifact)}(-\d+)?")
                for item in sorted(
                    filter(lambda item: named.fullmatch(item["Key"]), found), key=lambda item: str(item["Key"])
                ):
                    end = {"Range": f"bytes=-{_MAX_BYTES}"} if item["Size"] > _MAX_BYTES else {}
                    body = client.get_object(Bucket=bucket, Key=item["Key"], **end)["Body"].read()
                    texts.append((item["LastModified"], body.decode("utf-8", "replace")))
    except ModuleNotFoundError as error:
        notify(f"the run's own {artifact} is left out: {explain(error) or error}")
    except ProGRPOError as error:
        notify(f"the run's own {artifact} is left out: {error}")
    return [text for _, text in sorted(texts, key=lambda text: text[0], reverse=True)]
