"""What validate-inputs does: from a form to checked settings, and everything that can be known before work starts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from progrpo.config import Arm, TrainConfig
from progrpo.inputs import Checkpoint, Dataset, check_writable, look_at_checkpoint, look_at_dataset, measure_prompts
from progrpo.training.preflight import Findings, check_adapters, check_memory, check_settings
from progrpo_components.form import read_form
from progrpo_components.settings import (
    ComparePipeline,
    EvaluatePipeline,
    PlacementConfig,
    PreparePipeline,
    TrainAndEvaluatePipeline,
    TrainJobConfig,
)
from progrpo_components.trainjob.artifacts import plain_uri

_GPU_PRODUCT = "nvidia.com/gpu.product"


class Resolved(NamedTuple):
    """Outputs of the validate-inputs component; settings as JSON values, empty where a pipeline has none.

    Attributes:
        gpu_count: as text, empty for no GPU. Kubeflow's driver reads what it asks Kubernetes for from texts alone: of a
            number it takes the empty text, and without a count it leaves the GPU out, without a word
            (backend/src/v2/driver of Kubeflow Pipelines 2.15 to 2.17, resolvePodSpecInputRuntimeParameter and
            initPodSpecPatch). The text "0" would make an entry of zero GPUs.
    """

    runs: list[dict[str, Any]]
    checkpoint: dict[str, Any]
    checkpoint_identity: str
    dataset: dict[str, Any]
    dataset_identity: str
    train: dict[str, Any]
    evaluation: dict[str, Any]
    comparison: dict[str, Any]
    trainjob: dict[str, Any]
    gpu_type: str
    gpu_count: str
    cpu: str
    memory: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    node_affinity: dict[str, Any]


class Validated(NamedTuple):
    """What was found out about a run.

    Attributes:
        settings: of the run, checked.
        resolved: the same, part by part.
        findings: nothing but warnings.
        checkpoint, dataset: as they were looked at.
    """

    settings: PreparePipeline
    resolved: Resolved
    findings: Findings
    checkpoint: Checkpoint
    dataset: Dataset


def validate(
    pipeline: str,
    form: Mapping[str, Any],
    *,
    preset: Mapping[str, Any],
    train_retries: int = 0,
    output_uri: str | None = None,
) -> Validated:
    """Resolve a form and check the settings, the inputs, and how they fit together; every problem at once.

    Args:
        pipeline: name of the pipeline.
        form: its fields; see :func:`progrpo_components.form.read_form`.
        preset: settings that the compiled package brings along.
        train_retries: how often a failed training is tried again.
        output_uri: where Kubeflow puts an output of this step, and so the root of those of all steps; None: not known.

    Raises:
        ConfigError, DataError, CheckpointError, StorageError: what cannot work, and how to mend it.
    """
    settings = read_form(pipeline, form, preset)
    arms, seeds, train = training_of(settings)
    trainjob = getattr(settings, "trainjob", None)
    findings = Findings()
    checkpoint = dataset = None
    with tempfile.TemporaryDirectory(prefix="progrpo-") as scratch:
        with _named("checkpoint_uri", findings):
            checkpoint = look_at_checkpoint(settings.checkpoint, Path(scratch) / "checkpoint")
        with _named("dataset", findings):
            dataset = look_at_dataset(settings.dataset, Path(scratch) / "dataset")
        if train is not None:
            check_settings(
                arms,
                train,
                findings,
                num_problems=dataset.num_train if dataset else None,
                num_heldout=dataset.num_heldout if dataset else None,
            )
            _check_retries(train, train_retries, findings)
            _check_trainjob(train, trainjob, findings, by_trainjob="trainjob" in preset)
            if trainjob is not None and output_uri is not None:
                _check_output(output_uri, findings)
        if isinstance(settings, EvaluatePipeline):
            _check_placement(settings, train, findings)
            if checkpoint and dataset and checkpoint.model:
                _check_together(settings, arms, train, checkpoint, dataset, findings)
        findings.log_and_raise()
    assert checkpoint is not None  # noqa: S101 - else there was an error
    assert dataset is not None  # noqa: S101
    runs = [{"arm": _dump(arm), "seed": seed} for seed in seeds for arm in arms]
    return Validated(settings, _resolve(settings, runs, checkpoint, dataset), findings, checkpoint, dataset)


def training_of(settings: PreparePipeline) -> tuple[list[Arm], list[int], TrainConfig | None]:
    """Return arms, seeds and how they are trained; none for a pipeline that trains nothing."""
    if isinstance(settings, ComparePipeline):
        return list(settings.arms), list(settings.seeds), settings.train
    if isinstance(settings, TrainAndEvaluatePipeline):
        return [settings.arm], [settings.seed], settings.train
    return [], [], None


@contextmanager
def _named(name: str, findings: Findings) -> Iterator[None]:
    """Take note of an error of what the form calls ``name``, and go on."""
    seen = len(findings.errors)
    with findings.collected():
        yield
    for i, error in enumerate(findings.errors[seen:], start=seen):
        findings.errors[i] = type(error)(f"{name}: {error}")


def _check_together(
    settings: EvaluatePipeline,
    arms: list[Arm],
    train: TrainConfig | None,
    checkpoint: Checkpoint,
    dataset: Dataset,
    findings: Findings,
) -> None:
    model, longest = checkpoint.model, None
    assert model is not None  # noqa: S101
    with findings.collected():
        prompts = measure_prompts(
            checkpoint.directory,
            model,
            settings.evaluation,
            train,
            problems=dataset.train,
            heldout=dataset.heldout,
        )
        longest = prompts["train"].longest
    if train is None:
        return
    check_adapters(model, train, findings)
    gpu = _gpu_bytes(settings.placement)
    if gpu is not None and settings.placement.gpu_count and train.device != "cpu":
        check_memory(arms, train, model, findings, gpu, on_gpu=True, prompt_tokens=longest)


def _gpu_bytes(placement: PlacementConfig) -> int | None:
    """Return the memory of the GPU that the node selector names, as NVIDIA's feature discovery labels nodes."""
    found = re.search(r"-(\d+)GB", placement.node_selector.get(_GPU_PRODUCT, ""))
    return int(found[1]) * 10**9 if found else None


def _check_placement(settings: EvaluatePipeline, train: TrainConfig | None, findings: Findings) -> None:
    gpus = settings.placement.gpu_count
    wanted = {"evaluation": (settings.evaluation.device, settings.evaluation.num_processes)}
    if train is not None:
        trainjob = getattr(settings, "trainjob", None)
        wanted["train"] = (train.device, train.distributed.num_processes // (trainjob.num_nodes if trainjob else 1))
    for name, (device, processes) in wanted.items():
        if device == "cuda" and processes > gpus:
            findings.error(
                f"gpu_count is {gpus}, but {name}.device is cuda with {processes} processes, one a GPU. "
                f"Raise gpu_count."
            )


def _check_retries(train: TrainConfig, train_retries: int, findings: Findings) -> None:
    if train_retries and train.checkpointing is None:
        findings.error(
            f"this package tries a failed training {train_retries} more times, which without train.checkpointing would "
            f"start from the first step. Set train.checkpointing.uri by overrides, or take a package without retries."
        )
    if train.checkpointing is not None and train.checkpointing.uri.startswith("s3://"):
        with _named("train.checkpointing.uri", findings):
            check_writable(train.checkpointing.uri)


def _check_trainjob(
    train: TrainConfig, trainjob: TrainJobConfig | None, findings: Findings, *, by_trainjob: bool
) -> None:
    """Check that the settings are of a package that trains as they say: how it does is fixed in it."""
    if by_trainjob != (trainjob is not None):
        findings.error(
            "trainjob is taken away, but this package trains by a TrainJob. Take one of another preset."
            if by_trainjob
            else "trainjob is set, but here the pod of the step trains. Take the package of preset multi-node, on a "
            "cluster; on this machine train.distributed.num_processes is all there is."
        )
    if trainjob is None:
        return
    try:
        trainjob.processes_per_node(train)
    except ValueError as error:
        findings.error(f"{error}.")
    if train.checkpointing is None:
        findings.warn(
            "several nodes train without train.checkpointing: when one is lost, training starts from the first step. "
            "Set train.checkpointing.uri by overrides"
        )


def _check_output(uri: str, findings: Findings) -> None:
    """Check that the nodes of a TrainJob can write where Kubeflow puts the outputs of this run."""
    with _named("pipeline root", findings):
        plain = plain_uri(uri)
        if plain.startswith("s3://"):
            check_writable(plain)


def _resolve(
    settings: PreparePipeline, runs: list[dict[str, Any]], checkpoint: Checkpoint, dataset: Dataset
) -> Resolved:
    parts = _dump(settings)
    placement = settings.placement if isinstance(settings, EvaluatePipeline) else PlacementConfig(gpu_count=0)
    placed = _dump(placement)
    return Resolved(
        runs=runs,
        checkpoint=parts["checkpoint"],
        checkpoint_identity=checkpoint.identity,
        dataset=parts["dataset"],
        dataset_identity=dataset.identity,
        train=parts.get("train", {}),
        evaluation=parts.get("evaluation", {}),
        comparison=parts.get("comparison", {}),
        trainjob=parts.get("trainjob", {}),
        gpu_type=placement.gpu_type,
        gpu_count=str(placement.gpu_count or ""),
        cpu=placement.cpu,
        memory=placement.memory,
        node_selector=dict(placement.node_selector),
        tolerations=placed["tolerations"],
        node_affinity=placed["node_affinity"],
    )


def _dump(settings: Any) -> dict[str, Any]:
    return dict(settings.model_dump(mode="json", exclude_none=True))
