"""What progrpo.training.trainer takes for granted in TRL's private methods. A failure here means: read TRL again."""

import inspect

import pytest
import trl
from trl import GRPOTrainer

from progrpo.training.trainer import PolicyTrainer

OVERRIDDEN = {
    "_prepare_inputs": ["self", "generation_batch"],
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
    "create_accelerator_and_postprocess": ["self"],
    "get_train_dataloader": ["self"],
}
CALLED = {"_generate_and_score_completions": ["self", "inputs"]}


def source(name: str) -> str:
    return inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, name)))


def test_the_pinned_version_is_the_one_that_was_read():
    assert trl.__version__ == "1.16.0"


def test_nothing_else_is_overridden():
    methods = {name for name, value in vars(PolicyTrainer).items() if callable(value) and hasattr(GRPOTrainer, name)}
    assert methods - {"__init__"} == set(OVERRIDDEN)


@pytest.mark.parametrize(("name", "leading"), (OVERRIDDEN | CALLED).items())
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


def test_completions_can_be_handed_over():
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source("_generate")
    assert "output = self.rollout_func(prompts, self)" in source("_generate")


def test_the_old_policy_is_scored_before_the_reference_and_under_our_condition():
    text = source("_generate_and_score_completions")
    assert text.index("old_per_token_logps, _, _ = self._get_per_token") < text.index("ref_per_token_logps, _, _ =")
    assert "self.args.gradient_accumulation_steps % generate_every != 0 or (" in text
    assert "self.use_vllm and self.vllm_importance_sampling_correction" in text


def test_a_batch_is_made_where_its_first_slice_is_asked_for():
    text = source("_prepare_inputs")
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in text
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in text
    assert "self._step += 1" in source("training_step")


def test_the_token_mean_is_over_the_batch_that_we_count():
    text = source("_compute_loss")
    assert 'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in text
    assert "normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation" in text


def test_extra_rows_survive_the_split():
    import torch
    from trl.trainer.utils import split_tensor_dict

    batch = {
        "completion_ids": torch.arange(12).view(6, 2),
        "row": torch.arange(6),
        "arm_gate": torch.arange(6) % 2 == 0,
    }
    slices = split_tensor_dict(batch, 3)
    assert sorted(torch.cat([part["row"] for part in slices]).tolist()) == list(range(6))
    for part in slices:
        assert part["completion_ids"][:, 0].tolist() == (2 * part["row"]).tolist()
        assert part["arm_gate"].tolist() == (part["row"] % 2 == 0).tolist()


def test_what_sharding_needs_of_torch_and_accelerate():
    from accelerate import PartialState
    from torch.distributed.fsdp import _fully_shard as fsdp

    assert isinstance(PartialState._shared_state, dict)
    assert hasattr(fsdp.FSDPModule, "_get_fsdp_state")
    assert "_fsdp_param_groups" in inspect.getsource(fsdp._fsdp_state.FSDPState.__init__)
