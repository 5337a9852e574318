"""What may be compared: refusals, and the warnings that stand on top of a report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from progrpo.comparison.sources import Evaluation, Training
from progrpo.config import START
from progrpo.errors import ComparisonError
from progrpo.evaluation.protocol import FREE_KEYS

# Other problems, or another number of completions of them, leave nothing to pair.
_REFUSED_PROTOCOL_KEYS = ("dataset_digest", "num_samples")
# How fast an evaluation runs is no part of what is measured.
_FREE_EVALUATION_KEYS = {"seed", "ks", "batch_size", "device", "num_threads", "max_problems"}
_FREE_TRAINING_KEYS = {"device", "num_threads", "log_rollouts_every", "checkpointing"}


def check_comparable(evaluations: Sequence[Evaluation], baseline: str) -> None:
    """Refuse evaluations whose difference would not be the arms' difference.

    Raises:
        ComparisonError: nothing to compare, an unknown baseline, an arm and seed twice, one arm name for two
            algorithms, evaluations on another dataset or other problems, or with another number of completions.
    """
    if not evaluations:
        raise ComparisonError("no evaluations given; give the output directory of at least one evaluate step.")
    arms = sorted({evaluation.arm for evaluation in evaluations})
    if baseline not in arms:
        raise ComparisonError(
            f"the baseline {baseline!r} was not evaluated; the arms given are {', '.join(arms)}. "
            f"Set comparison.baseline to one of them, or give an evaluation of {baseline!r}."
        )
    seen: dict[tuple[str, int | None], Evaluation] = {}
    algorithms: dict[str, Evaluation] = {}
    first = evaluations[0]
    for other in evaluations:
        twin = seen.setdefault((other.arm, other.seed), other)
        if twin is not other:
            raise ComparisonError(
                f"{other.label} is given twice: {twin.directory} and {other.directory}. Give each arm and seed once."
            )
        same_arm = algorithms.setdefault(other.arm, other)
        _refuse_different("algorithm", same_arm, other, same_arm.summary.algorithm, other.summary.algorithm)
        for key in _REFUSED_PROTOCOL_KEYS:
            _refuse_different(
                f"protocol.{key}", first, other, first.summary.protocol.get(key), other.summary.protocol.get(key)
            )
        _refuse_other_problems(first, other)


def _refuse_different(key: str, first: Evaluation, other: Evaluation, value: Any, other_value: Any) -> None:
    if value != other_value:
        raise ComparisonError(
            f"{key} differs: {value!r} in {first.directory} ({first.label}), "
            f"{other_value!r} in {other.directory} ({other.label}). Evaluate both in the same way."
        )


def _refuse_other_problems(first: Evaluation, other: Evaluation) -> None:
    if first.problem_ids == other.problem_ids:
        return
    mine, theirs = set(first.problem_ids), set(other.problem_ids)
    parts = []
    for evaluation, ids in ((first, sorted(mine - theirs)), (other, sorted(theirs - mine))):
        only_there = f"{len(ids)} only there" + (f", for example {ids[0]!r}" if ids else "")
        parts.append(f"{len(evaluation.problem_ids)} in {evaluation.directory} ({evaluation.label}; {only_there})")
    raise ComparisonError(f"problems differ: {' and '.join(parts)}. Evaluate both on the same dataset.")


def check_trainings(trainings: Sequence[Training]) -> dict[tuple[str, int], Training]:
    """Index training runs by arm and seed.

    Raises:
        ComparisonError: two runs of the same arm and seed.
    """
    index: dict[tuple[str, int], Training] = {}
    for training in trainings:
        twin = index.setdefault((training.arm, training.seed), training)
        if twin is not training:
            raise ComparisonError(
                f"training of {training.label} is given twice: {twin.directory} and "
                f"{training.directory}. Give each arm and seed once."
            )
    return index


def protocol_differences(evaluations: Sequence[Evaluation]) -> list[str]:
    """Name every way in which the evaluations measured differently: then a difference is not the arms' alone."""
    protocols = {evaluation.label: evaluation.summary.protocol for evaluation in evaluations}
    return list(_differences(protocols, FREE_KEYS))


def shared_protocol(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what the protocols of all evaluations agree on, with dotted keys."""
    protocols = [flatten(evaluation.summary.protocol) for evaluation in evaluations]
    return {key: value for key, value in protocols[0].items() if all(p.get(key) == value for p in protocols)}


def find_warnings(evaluations: Sequence[Evaluation], trainings: Mapping[tuple[str, int], Training]) -> list[str]:
    """Say what a reader must know before trusting the differences."""
    return [
        *_seed_warnings(evaluations),
        *_training_warnings(evaluations, trainings),
        *_lineage_warnings(evaluations, trainings.values()),
        *_evaluation_warnings(evaluations),
        *_hardware_warnings(evaluations, trainings),
    ]


def _seed_warnings(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    seeds: dict[str, set[int]] = {}
    for evaluation in evaluations:
        if evaluation.seed is not None:
            seeds.setdefault(evaluation.arm, set()).add(evaluation.seed)
    single = [arm for arm, values in seeds.items() if len(values) == 1]
    if single:
        yield (
            f"One training seed only ({', '.join(single)}): the intervals hold the variation between problems, "
            f"not the variation between trainings. A result from one seed may not repeat."
        )
    if len({frozenset(values) for values in seeds.values()}) > 1:
        listed = "; ".join(f"{arm}: {', '.join(map(str, sorted(values)))}" for arm, values in seeds.items())
        yield f"The arms were trained with different seeds ({listed})."


def _training_warnings(
    evaluations: Sequence[Evaluation], trainings: Mapping[tuple[str, int], Training]
) -> Iterator[str]:
    evaluated = {(e.arm, e.seed): e for e in evaluations}
    for key, training in trainings.items():
        evaluation = evaluated.get(key)
        if evaluation is None:
            yield f"Training {training.label} was given without its evaluation."
        elif training.checkpoint_digest not in (None, evaluation.summary.checkpoint_digest):
            yield (
                f"The evaluation of {evaluation.label} measured checkpoint "
                f"{evaluation.summary.checkpoint_digest[:12]}, but the training run given made "
                f"{str(training.checkpoint_digest)[:12]}: the training curves belong to another checkpoint."
            )
    runs = {run.label: run.config | {"inputs": _short(run.inputs)} for run in trainings.values()}
    for difference in _differences(runs, _FREE_TRAINING_KEYS):
        yield f"Training differed in more than the algorithm: {difference}."


def _lineage_warnings(evaluations: Sequence[Evaluation], trainings: Collection[Training]) -> Iterator[str]:
    """Say where training began or learned elsewhere than the evaluations suppose."""
    dataset = evaluations[0].summary.protocol.get("dataset_digest")
    if other := [run.label for run in trainings if run.inputs.get("dataset", dataset) != dataset]:
        yield (
            f"Trained on another dataset than the one evaluated on: {', '.join(other)}. "
            f"Its training split may hold problems that count as held out here."
        )
    for start in (evaluation for evaluation in evaluations if evaluation.arm == START):
        digest = start.summary.checkpoint_digest
        if other := [run.label for run in trainings if run.inputs.get("checkpoint", digest) != digest]:
            yield f"{START} is not the checkpoint that training began from: {', '.join(other)}."


def _short(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest[:12] for name, digest in digests.items()}


def _evaluation_warnings(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    configs = {evaluation.label: evaluation.config.get("evaluation") or {} for evaluation in evaluations}
    measured = {key for evaluation in evaluations for key in evaluation.summary.protocol} - FREE_KEYS
    for difference in _differences(configs, _FREE_EVALUATION_KEYS | measured):
        yield f"Evaluation differed: {difference}."
    for evaluation in evaluations:
        if evaluation.summary.unscored:
            total = len(evaluation.problem_ids) * evaluation.summary.num_samples
            yield (
                f"{evaluation.label}: {evaluation.summary.unscored} of {total} completions could not be scored (the "
                f"verifier failed or ran out of time) and count as wrong."
            )


def _hardware_warnings(
    evaluations: Sequence[Evaluation], trainings: Mapping[tuple[str, int], Training]
) -> Iterator[str]:
    for step, hardware in (
        ("evaluated", {e.summary.hardware for e in evaluations if e.arm != START}),
        ("trained", {str(t.metadata["hardware"]) for t in trainings.values() if "hardware" in t.metadata}),
    ):
        if len(hardware) > 1:
            listed = "; ".join(sorted(hardware))
            yield f"The arms were {step} on different hardware ({listed}): their wall times do not compare."


def _differences(configs: Mapping[str, Mapping[str, Any]], ignore: Collection[str]) -> Iterator[str]:
    """Yield "key is 1 in a, b; 2 in c" for every dotted key whose value is not the same in all of ``configs``."""
    flat = {name: flatten(config) for name, config in configs.items()}
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        if key.split(".")[0] in ignore:
            continue
        names: dict[str, list[str]] = {}
        for name, values in flat.items():
            names.setdefault(repr(values.get(key)), []).append(name)
        if len(names) > 1:
            yield f"{key} is " + "; ".join(f"{value} in {', '.join(where)}" for value, where in names.items())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
