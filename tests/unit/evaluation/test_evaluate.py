"""The evaluate step on the embedded checkpoint: its artifact, its repetition, its refusals."""

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from progrpo.config import GRPO, Arm, EvaluateConfig
from progrpo.errors import CheckpointError, ConfigError, DataError, ManifestError
from progrpo.evaluation import sampling as module
from progrpo.evaluation.diversity import distinct_ngram_frac, self_bleu, words
from progrpo.evaluation.evaluate import evaluate
from progrpo.evaluation.table import read_table
from progrpo.manifest import read_manifest, write_manifest
from progrpo.metrics import Progress
from progrpo.rewards import Verdict

CONFIG = EvaluateConfig(num_samples=6, temperature=1.0, top_p=1.0, max_completion_tokens=9, batch_size=30)


def _result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "evaluation.json").read_text())


def _rows(directory: Path) -> list[dict[str, Any]]:
    return pq.read_table(directory / "samples.parquet").to_pylist()


@pytest.fixture(scope="module")
def evaluation(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation")
    evaluate(CONFIG, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
    return output


def test_artifact(evaluation: Path, tiny_dataset: Path, embedded_checkpoint: Path) -> None:
    manifest = read_manifest(evaluation, "evaluation")
    dataset, checkpoint = read_manifest(tiny_dataset, "dataset"), read_manifest(embedded_checkpoint, "checkpoint")
    assert manifest.inputs == {"dataset": dataset.digest, "checkpoint": checkpoint.digest}
    assert EvaluateConfig.model_validate(manifest.config["evaluation"]) == CONFIG
    result = _result(evaluation)
    assert (result["arm"], result["algorithm"], result["seed"]) == ("start", None, None)
    assert (result["num_problems"], result["num_samples"], result["ks"]) == (16, 6, [1, 2, 4, 6])
    assert (result["checkpoint_digest"], result["train_wall_time_s"]) == (checkpoint.digest, None)
    assert result["protocol"]["dataset_digest"] == dataset.digest
    assert result["protocol"]["chat_template_digest"] == checkpoint.metadata["chat_template_digest"]
    assert result["protocol"]["temperature"] == 1.0
    assert set(result["protocol"]["verifier"]) == {"countdown"}
    assert {"torch", "transformers", "progrpo", "python"} <= set(result["versions"])
    assert result["unscored"] == 0


def test_samples_are_every_completion_once_in_order(evaluation: Path) -> None:
    rows = _rows(evaluation)
    ids = [f"{row['problem_id']}/{row['sample_index']}" for row in rows]
    problems = list(dict.fromkeys(row["problem_id"] for row in rows))
    assert ids == [f"{problem}/{i}" for problem in problems for i in range(6)]
    assert len(problems) == 16
    assert all(row["scored"] for row in rows)
    assert all(0 < row["answer_confidence"] <= 1 for row in rows)
    assert all(0 < row["num_tokens"] <= 9 for row in rows)
    assert all(row["finish_reason"] == "stop" or row["num_tokens"] == 9 for row in rows)
    assert all(row["logprob_sum"] < 0 < row["entropy_sum"] for row in rows)
    assert all(row["answer"] is not None for row in rows if row["correct"])


def _vote(answers: list[tuple[str | None, bool]]) -> float:
    counts = {answer: answers.count(answer) for answer in answers if answer[0] is not None}
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum(correct for _, correct in leaders) / len(leaders) if leaders else 0.0


def test_metrics_recomputed_from_samples(evaluation: Path) -> None:
    """Plain loops over the rows; Pass@k and Majority@k by listing every k-subset of a problem's completions."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(evaluation):
        groups.setdefault(row["problem_id"], []).append(row)
    rows = [row for group in groups.values() for row in group]
    right, wrong = [row for row in rows if row["correct"]], [row for row in rows if not row["correct"]]
    tokens = sum(row["num_tokens"] for row in rows)
    expected = {
        "eval/entropy": sum(row["entropy_sum"] for row in rows) / tokens,
        "eval/entropy_correct": sum(r["entropy_sum"] for r in right) / sum(r["num_tokens"] for r in right),
        "eval/entropy_incorrect": sum(r["entropy_sum"] for r in wrong) / sum(r["num_tokens"] for r in wrong),
        "eval/sampled_nll": -sum(row["logprob_sum"] for row in rows) / tokens,
        "eval/distinct_correct": sum(len({r["answer"] for r in g if r["correct"]}) for g in groups.values()) / 16,
        "eval/distinct_paths": sum(len({r["solution_path"] for r in g if r["correct"]}) for g in groups.values()) / 16,
        "eval/completion_tokens": tokens / len(rows),
        "eval/truncated_frac": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "eval/unscored_frac": 0.0,
        "eval/answer_confidence": sum(row["answer_confidence"] for row in rows) / len(rows),
        "eval/self_bleu": sum(self_bleu([words(r["completion"]) for r in g]) or 0 for g in groups.values()) / 16,
    }
    fracs = [distinct_ngram_frac([words(r["completion"]) for r in g]) for g in groups.values()]
    expected["eval/distinct_ngram_frac"] = sum(f or 0 for f in fracs) / sum(f is not None for f in fracs)
    shares = [
        [count / 6 for count in Counter((r["answer"], r["correct"]) for r in g).values()] for g in groups.values()
    ]
    expected["eval/answer_entropy"] = sum(-share * math.log(share) for group in shares for share in group) / 16
    for k in (1, 2, 4, 6):
        subsets = [[list(subset) for subset in combinations(g, k)] for g in groups.values()]
        hits = [[sum(r["correct"] for r in subset) for subset in group] for group in subsets]
        expected[f"eval/pass_at_{k}"] = sum(sum(hit > 0 for hit in hs) / len(hs) for hs in hits) / 16
        votes = [[_vote([(r["answer"], r["correct"]) for r in subset]) for subset in group] for group in subsets]
        expected[f"eval/majority_at_{k}"] = sum(sum(v) / len(v) for v in votes) / 16
        thresholds = range(math.ceil(k / 2) + 1, k + 1) if k > 1 else [1]
        areas = [sum(sum(hit >= t for hit in hs) / len(hs) for t in thresholds) for hs in hits]
        expected[f"eval/mg_pass_at_{k}"] = sum(areas) / 16 * (2 / k if k > 1 else 1)
    metrics = _result(evaluation)["metrics"]
    assert {name: metric["value"] for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)
    assert all(metric["low"] <= metric["value"] <= metric["high"] for metric in metrics.values())
    assert 0 < expected["eval/pass_at_1"] < expected["eval/pass_at_6"] < 1, "the case must be able to tell"


def test_entropy_by_position_adds_up(evaluation: Path) -> None:
    result, rows = _result(evaluation), _rows(evaluation)
    assert result["position_edges"] == list(range(10)), "9 tokens at most: each position is a bin"
    curves = result["curves"]["entropy_by_position"]
    for kind, chosen in (("all", rows), ("correct", [r for r in rows if r["correct"]])):
        for point in curves[kind]:
            reached = [row for row in chosen if row["num_tokens"] > point["start"]]
            assert point["num_tokens"] == len(reached)
            total = sum(row["position_entropy"][point["start"]] for row in reached)
            assert point["value"] == pytest.approx(total / len(reached), rel=1e-6)
    for row in rows:
        assert len(row["position_entropy"]) == row["num_tokens"]
        assert sum(row["position_entropy"]) == pytest.approx(row["entropy_sum"], rel=1e-5)


def test_the_table_of_an_artifact_gives_its_metrics(evaluation: Path) -> None:
    table, result = read_table(evaluation), _result(evaluation)
    for name, metric in result["metrics"].items():
        assert float(table.values(name).value) == pytest.approx(metric["value"], rel=1e-9)
    points = {point["k"]: point["value"] for point in result["curves"]["pass_at_k"]}
    assert list(points.values()) == pytest.approx(table.curve("pass_at_k").value.tolist())
    with pytest.raises(DataError, match="there is no metric 'eval/pass'"):
        table.values("eval/pass")


def test_calibration_recomputed(evaluation: Path) -> None:
    """AUROC by counting pairs, and each bin's accuracy by hand."""
    rows, result = _rows(evaluation), _result(evaluation)["calibration"]
    right = [row["answer_confidence"] for row in rows if row["correct"]]
    wrong = [row["answer_confidence"] for row in rows if not row["correct"]]
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert result["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs))
    assert result["auroc"]["low"] < result["auroc"]["value"] < result["auroc"]["high"]
    assert sum(b["num_completions"] for b in result["bins"]) == len(rows)
    last = len(result["bins"]) - 1
    for i, b in enumerate(result["bins"]):
        inside = [
            row["correct"]
            for row in rows
            if b["confidence_low"] <= row["answer_confidence"]
            and (row["answer_confidence"] < b["confidence_high"] or i == last)
        ]
        assert b["accuracy"]["value"] == pytest.approx(sum(inside) / len(inside))


def test_scores_are_those_of_the_checkpoint(evaluation: Path, embedded_checkpoint: Path, tiny_dataset: Path) -> None:
    """A completion that ended is tokenised again and scored by one plain forward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from progrpo.data.dataset import load_problems

    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint)
    prompts = {problem.id: problem.prompt for problem in load_problems(tiny_dataset, "eval")}
    checked = 0
    for row in _rows(evaluation):
        text = tokenizer.apply_chat_template(prompts[row["problem_id"]], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if row["finish_reason"] != "stop" or len(completion) != row["num_tokens"] or checked == 12:
            continue  # cut off, or with special tokens, which the text does not show
        logprobs = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert row["logprob_sum"] == pytest.approx(logprobs[range(len(completion)), completion].sum().item(), abs=1e-4)
        assert row["entropy_sum"] == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-4)
        checked += 1
    assert checked == 12


def test_repeats_exactly_with_the_same_seed(
    evaluation: Path, tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    import torch

    torch.manual_seed(1234)  # what ran before must not matter
    inputs = {"dataset": tiny_dataset, "checkpoint": embedded_checkpoint}
    evaluate(CONFIG, **inputs, output=tmp_path / "again")
    assert (tmp_path / "again/samples.parquet").read_bytes() == (evaluation / "samples.parquet").read_bytes()
    first, again = _result(evaluation), _result(tmp_path / "again")
    for result in (first, again):
        assert 0 < result.pop("sampling_wall_time_s") < result.pop("eval_wall_time_s")
    assert first == again

    evaluate(CONFIG.model_copy(update={"seed": 1}), **inputs, output=tmp_path / "other")
    assert _rows(tmp_path / "other") != _rows(evaluation)


def test_completions_do_not_depend_on_batch_or_selection(
    evaluation: Path, tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    """Sums of log-probabilities differ by rounding, as matrix products of another shape do; nothing else does."""
    config = CONFIG.model_copy(update={"max_problems": 10, "batch_size": 7})
    evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path)
    for row, other in zip(_rows(tmp_path), _rows(evaluation)[:60], strict=True):
        for key in ("logprob_sum", "entropy_sum", "answer_confidence", "position_entropy"):
            assert row.pop(key) == pytest.approx(other.pop(key), rel=1e-4, abs=1e-4)
        assert row == other


def test_progress_is_told_shard_by_shard(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_problems": 4, "num_samples": 25, "batch_size": 10})
    progress = Progress(tmp_path / "progress.jsonl")
    evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out", progress=progress)
    rows = _rows(tmp_path / "out")
    assert [row["sample_index"] for row in rows] == [*range(25)] * 4
    assert len({row["completion"] for row in rows[:25]}) > 3, "samples of one problem must differ"
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["done"] for line in lines] == [25, 50, 75, 100]
    assert {line["total"] for line in lines} == {100}
    assert lines[-1]["pass_at_1"] == pytest.approx(_result(tmp_path / "out")["metrics"]["eval/pass_at_1"]["value"])


def test_several_processes_give_the_same_file(
    evaluation: Path, tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"num_processes": 2})
    progress = Progress(tmp_path / "progress.jsonl")
    evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out", progress=progress)
    assert (tmp_path / "out/samples.parquet").read_bytes() == (evaluation / "samples.parquet").read_bytes()
    assert json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])["done"] == 96


def test_the_error_of_a_sampling_process_is_ours(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _with_weights(
        embedded_checkpoint, tmp_path / "checkpoint", lambda weights: weights["model.norm.weight"].fill_(float("nan"))
    )
    config = CONFIG.model_copy(update={"num_processes": 2})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight .* not finite"):
        evaluate(config, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")


def test_a_trained_arm_names_algorithm_seed_and_wall_time(
    tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    training = tmp_path / "training"
    training.mkdir()
    write_manifest(training, "training", metadata={"train_wall_time_s": 12.5})
    config = CONFIG.model_copy(update={"max_problems": 1})
    inputs = {"dataset": tiny_dataset, "checkpoint": embedded_checkpoint, "output": tmp_path / "out"}
    manifest = evaluate(config, **inputs, arm=Arm(name="baseline", algorithm=GRPO()), seed=3, training=training)
    result = _result(tmp_path / "out")
    assert (result["arm"], result["algorithm"]["type"], result["seed"]) == ("baseline", "grpo", 3)
    assert result["train_wall_time_s"] == 12.5
    assert manifest.config["arm"]["name"] == "baseline"
    with pytest.raises(ConfigError, match="a trained arm has a seed"):
        evaluate(config, **inputs, arm=Arm(name="baseline", algorithm=GRPO()))


def test_unscored_completions_are_counted_and_warned_of(
    tiny_dataset: Path,
    embedded_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    verdicts = [Verdict(correct=True, answer="1", scored=True)] * 4 + [
        Verdict(correct=False, answer=None, scored=False)
    ] * 2
    monkeypatch.setattr(module, "verify_batch", lambda items: verdicts * (len(items) // 6))
    config = CONFIG.model_copy(update={"max_problems": 5})
    with caplog.at_level(logging.WARNING, logger="progrpo.evaluation.evaluate"):
        evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path)
    result = _result(tmp_path)
    assert result["unscored"] == 10
    assert result["metrics"]["eval/pass_at_1"]["value"] == pytest.approx(4 / 6)
    assert "10 of 30 completions could not be scored" in caplog.text


def test_a_failure_leaves_no_artifact_not_even_an_old_one(
    evaluation: Path, tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    shutil.copytree(evaluation, output)

    def fail(items: object) -> None:
        raise RuntimeError("verifier fell over")

    monkeypatch.setattr(module, "verify_batch", fail)
    with pytest.raises(RuntimeError, match="fell over"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
    with pytest.raises(ManifestError, match="not a finished evaluation"):
        read_manifest(output, "evaluation")


def test_too_little_memory_says_what_to_lower(
    tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(items: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "verify_batch", fail)
    with pytest.raises(ConfigError, match="batch_size = 30"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path)


def _without_chat_template(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "chat_template.jinja").unlink(missing_ok=True)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))
    write_manifest(target, "checkpoint")
    return target


def test_no_chat_template(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _without_chat_template(embedded_checkpoint, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="no chat template"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _with_weights(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    write_manifest(target, "checkpoint")
    return target


def test_a_diverged_checkpoint_names_the_tensor(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _with_weights(
        embedded_checkpoint, tmp_path / "checkpoint", lambda weights: weights["model.norm.weight"].fill_(float("nan"))
    )
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight .* not finite"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")


def test_absent_weights_are_not_made_up(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _with_weights(
        embedded_checkpoint, tmp_path / "checkpoint", lambda weights: weights.pop("model.norm.weight")
    )
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .* model\.norm\.weight"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")


def test_completions_that_exceed_the_context(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_completion_tokens": 8192})
    with pytest.raises(ConfigError, match=r"max_completion_tokens = 8192 .* Set max_completion_tokens to at most \d+"):
        evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_fills_the_context_is_named(
    tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(embedded_checkpoint, checkpoint)
    settings = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 8}))
    write_manifest(checkpoint, "checkpoint")
    with pytest.raises(DataError, match=r"problem '.+': its prompt has \d+ tokens"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")


def test_no_held_out_problems(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, dataset)
    empty = pq.read_table(dataset / "eval.parquet").slice(0, 0)
    pq.write_table(empty, dataset / "eval.parquet")
    write_manifest(dataset, "dataset")
    with pytest.raises(DataError, match="eval"):
        evaluate(CONFIG, dataset=dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out")


@pytest.mark.parametrize("broken", ["dataset", "checkpoint"])
def test_inputs_must_be_artifacts_of_their_kind(
    tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path, broken: str
) -> None:
    inputs = {"dataset": tiny_dataset, "checkpoint": embedded_checkpoint}
    swapped = {"dataset": embedded_checkpoint, "checkpoint": tiny_dataset}
    with pytest.raises(ManifestError, match=f"but a {broken} artifact is needed"):
        evaluate(CONFIG, **(inputs | {broken: swapped[broken]}), output=tmp_path / "out")


def test_weights_of_another_shape_are_refused(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path) -> None:
    def cut(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()

    checkpoint = _with_weights(embedded_checkpoint, tmp_path / "checkpoint", cut)
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")


def test_a_chat_template_that_fails_names_the_problem(
    tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = _without_chat_template(embedded_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    write_manifest(checkpoint, "checkpoint")
    with pytest.raises(DataError, match=r"problem '[0-9a-f]+': the checkpoint's chat template refuses"):
        evaluate(CONFIG, dataset=tiny_dataset, checkpoint=checkpoint, output=tmp_path / "out")
