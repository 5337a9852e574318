"""What progrpo.training.trainer takes for granted in TRL's private methods. A failure here means: read TRL again."""

import inspect

import pytest
import trl
from trl import GRPOTrainer

from progrpo.training.trainer import PolicyTrainer

OVERRIDDEN = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_per_token_logps_and_entropies": [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ],
}


def source(name: str) -> str:
    return inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, name)))


def test_the_pinned_version_is_the_one_that_was_read():
    assert trl.__version__ == "1.16.0"


def test_nothing_else_is_overridden():
    methods = {name for name, value in vars(PolicyTrainer).items() if callable(value) and hasattr(GRPOTrainer, name)}
    assert methods - {"__init__"} == set(OVERRIDDEN)


@pytest.mark.parametrize(("name", "leading"), OVERRIDDEN.items())
def test_signatures(name, leading):
    parameters = list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)
    assert parameters[: len(leading)] == leading


def test_scoring_returns_logprobs_entropies_and_the_auxiliary_loss():
    assert "return logps, entropies, aux_loss" in source("_get_per_token_logps_and_entropies")


def test_the_loss_reads_the_advantages_after_its_forward_pass():
    text = source("_compute_loss")
    assert text.index("self._get_per_token_logps_and_entropies(") < text.index('inputs["advantages"]')
    assert text.count('inputs["advantages"]') == 1
    assert text.count("self._get_per_token_logps_and_entropies(") == 1


def test_rewards_come_before_advantages_and_from_one_call():
    text = source("_generate_and_score_completions")
    assert text.count("self._calculate_rewards(") == 1
    assert text.index("self._calculate_rewards(") < text.index('"advantages": advantages')


def test_rewards_are_gathered_over_ranks():
    assert "rewards_per_func = gather(rewards_per_func)" in source("_calculate_rewards")


def test_extra_rows_survive_shuffle_and_split():
    import torch
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    batch = {
        "completion_ids": torch.arange(12).view(6, 2),
        "row": torch.arange(6),
        "arm_gate": torch.arange(6) % 2 == 0,
    }
    slices = split_tensor_dict(shuffle_sequence_dict(batch), 3)
    assert sorted(torch.cat([part["row"] for part in slices]).tolist()) == list(range(6))
    for part in slices:
        assert part["completion_ids"][:, 0].tolist() == (2 * part["row"]).tolist()
        assert part["arm_gate"].tolist() == (part["row"] % 2 == 0).tolist()
