"""One rank against two, a copy of the model on each (DDP) or one sharded over both (FSDP2), on a CPU with gloo.

Rollouts are named, so two ranks sample what one does, and all that follows must agree.
"""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from progrpo.metrics import read_jsonl

PROGRAM = Path(__file__).with_name("rank_gradients.py")
CONFIG = {
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 4,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 1,
}
PROGRPO = {"name": "progrpo", "algorithm": {"type": "progrpo", "alpha": 1.0}}
DAPO = {"name": "dapo", "algorithm": {"type": "progrpo", "alpha": 1.0, "dynamic_sampling": {"max_rounds": 1}}}
SPARSE = {"name": "sparse", "algorithm": {"type": "passk", "k": 3, "dynamic_sampling": {"max_rounds": 1}}}
SEQUENCE = {"name": "seq", "algorithm": {"type": "grpo", "loss": {"aggregation": "sequence_mean", "kl_beta": 0.1}}}
STRATEGIES = {
    "one": {},
    "ddp": {"distributed": {"num_processes": 2, "strategy": "ddp"}},
    "fsdp2": {"distributed": {"num_processes": 2, "strategy": "fsdp2"}},
}
HELDOUT = {"heldout": {"every": 3, "num_problems": 5, "num_samples": 2}}  # 5 does not divide by 2
CASES = {
    "progrpo": (PROGRPO, HELDOUT),
    "micro-batches": (PROGRPO, {"micro_batch_size": 4}),
    "updates": (PROGRPO, {"updates_per_rollout": 2, "num_iterations": 2, "steps": 4}),
    "dynamic-sampling": (DAPO, {}),
    "dynamic-sampling-micro-batches": (SPARSE, {"micro_batch_size": 4, "steps": 4}),
    "sequence-mean-kl": (SEQUENCE, {}),
    "lora": (PROGRPO, {"lora": {"rank": 4}}),
}


@pytest.fixture(scope="module")
def outputs_of(python, tiny_dataset, embedded_checkpoint, tmp_path_factory):
    """Make the runs of a case, once; return the directory they lie in."""
    made = {}

    def outputs_of(case):
        if case not in made:
            made[case] = directory = tmp_path_factory.mktemp(case)
            arm, settings = CASES[case]
            runs = {name: {"arm": arm, "config": CONFIG | settings | own} for name, own in STRATEGIES.items()}
            job = {"dataset": str(tiny_dataset), "checkpoint": str(embedded_checkpoint), "output": str(directory)}
            (directory / "settings.json").write_text(json.dumps(job | {"runs": runs}))
            command = [python, str(PROGRAM), str(directory / "settings.json")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=540)
            assert done.returncode == 0, done.stderr[-4000:]
        return made[case]

    return outputs_of


EXCEPT = {"train/step_s", "perf/tokens_per_s", "perf/peak_memory_gib", "perf/logprob_mismatch"}
MEANS_OF_MEANS = {"train/entropy"}  # over micro-batches, of which ranks make others


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_agree(outputs_of, case, strategy):
    outputs = outputs_of(case)
    one, two = (read_jsonl(outputs / name / "metrics.jsonl") for name in ("one", strategy))
    assert len(one) == len(two)
    for row, expected in zip(two, one, strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            if key not in EXCEPT and not ("micro-batches" in case and key in MEANS_OF_MEANS):
                assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (row["step"], key)
    expected = load_file(outputs / "one.safetensors")
    gradients = load_file(outputs / f"{strategy}.safetensors")
    assert gradients.keys() == expected.keys()
    first = {name for name in expected if name.startswith("1.")}  # the same weights; later ones differ by rounding
    flat, flat_expected = (torch.cat([g[name].flatten() for name in sorted(first)]) for g in (gradients, expected))
    assert relative(flat, flat_expected) < 1e-5
    for name in expected:
        if expected[name].norm() > 1e-4:
            assert relative(gradients[name], expected[name]) < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", ["progrpo", "lora"])
def test_the_written_checkpoint_is_the_same_model(outputs_of, case, strategy):
    one, two = (
        AutoModelForCausalLM.from_pretrained(outputs_of(case) / name / "checkpoint", dtype=torch.float32)
        for name in ("one", strategy)
    )
    assert type(one) is type(two)
    expected = one.state_dict()
    for name, weight in two.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_groups_are_whole_and_in_order_whatever_the_ranks(outputs_of, strategy):
    tables = [
        pq.read_table(outputs_of("progrpo") / name / "rollouts" / "step_00001.parquet").to_pydict()
        for name in ("one", strategy)
    ]
    for column in ("group", "sample", "completion", "correct", "advantage"):
        assert tables[0][column] == tables[1][column], column
    assert tables[0]["group"] == sorted(tables[0]["group"])
    assert tables[0]["advantage_shift"] == pytest.approx(tables[1]["advantage_shift"], abs=1e-5)
