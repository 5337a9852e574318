"""The seam on a real model: alpha = 0 is grpo, grpo is stock TRL, ARM costs no pass and reads the right numbers."""

import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOTrainer

from progrpo.algorithms.confidence import answer_confidence
from progrpo.checkpoints.loading import eos_token_ids, render_prompts
from progrpo.config import GRPO, Arm, EntropyBonus, LossConfig, ProGRPO, TrainConfig
from progrpo.data.dataset import load_problems
from progrpo.training.build import build_trainer, correctness
from progrpo.training.train import prepare_model

SETTINGS = {
    "steps": 5,
    "prompts_per_step": 4,
    "group_size": 8,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
}


@pytest.fixture
def make_trainer(embedded_checkpoint, tiny_dataset, tmp_path):
    def make(algorithm, seed=0, **settings):
        tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint, dtype=torch.float32)
        prepare_model(model, tokenizer, eos_token_ids(embedded_checkpoint, model, tokenizer))
        config = TrainConfig(**(SETTINGS | settings))
        problems = load_problems(tiny_dataset, "train")
        prompts = render_prompts(tokenizer, problems)
        arm = Arm(name="arm", algorithm=algorithm)
        return build_trainer(arm, seed, config, model, tokenizer, problems, prompts, tmp_path)

    return make


def run(*trainers, seed=0):
    for trainer in trainers:
        set_seed(seed)
        trainer.train()


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("prompt", ["inverse_perplexity", "low_prob", "group_mean", "none"])
def test_alpha_zero_trains_bit_identically_to_grpo(make_trainer, prompt):
    grpo, progrpo = make_trainer(GRPO()), make_trainer(ProGRPO(alpha=0.0, prompt_confidence=prompt))
    run(grpo, progrpo)
    assert sum(loss != 0 for loss in losses(grpo)) >= 2, "without a signal the runs would agree whatever they do"
    assert losses(grpo) == losses(progrpo)
    assert_same(weights(grpo), weights(progrpo))


def test_alpha_zero_is_grpo_with_micro_batches_too(make_trainer):
    grpo, progrpo = make_trainer(GRPO(), micro_batch_size=8), make_trainer(ProGRPO(alpha=0.0), micro_batch_size=8)
    run(grpo, progrpo)
    assert_same(weights(grpo), weights(progrpo))


def test_alpha_moves_the_weights(make_trainer):
    grpo, progrpo = make_trainer(GRPO(), steps=1), make_trainer(ProGRPO(alpha=1.0), steps=1)
    run(grpo, progrpo)
    assert any(not torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(progrpo).values(), strict=True))


class StockTrainer(GRPOTrainer):
    """TRL's own trainer, told of our rollouts and of our order of rows; advantages and loss are its own."""

    def _prepare_inputs(self, generation_batch):
        from trl.trainer.utils import split_tensor_dict

        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            rows = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(rows, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]


def stock_twin(template):
    """Stock TRL with the model, arguments and problems of ``template``, drawing the same rollouts by TRL's own hook."""
    collector, problems = template.collector, template.collector.problems

    def rollouts(prompts, trainer):
        G = trainer.num_generations
        taken = collector.stream.take(len(prompts) // G)
        assert [problems[i].prompt for _, i in taken for _ in range(G)] == prompts, "the order is TRL's RepeatSampler's"
        ids = [list(collector.prompts[i]) for _, i in taken for _ in range(G)]
        completions = collector.engine.sample(ids, [(place, g) for place, _ in taken for g in range(G)])
        return {
            "prompt_ids": ids,
            "completion_ids": [list(c.token_ids) for c in completions],
            "logprobs": [c.logprobs for c in completions],
        }

    columns = {name: [getattr(problem, name) for problem in problems] for name in ("prompt", "answer", "task")}
    stock = StockTrainer(
        model=template.model,
        processing_class=template.processing_class,
        reward_funcs=correctness,
        args=template.args,
        train_dataset=Dataset.from_dict(columns),
        rollout_func=rollouts,
    )
    collector.engine._trainer = stock
    return stock


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant_length"])
def test_grpo_is_stock_trl_bit_for_bit(make_trainer, normalize_std, aggregation):
    loss = LossConfig(normalize_std=normalize_std, aggregation=aggregation)
    ours, stock = make_trainer(GRPO(), steps=3, loss=loss), stock_twin(make_trainer(GRPO(), steps=3, loss=loss))
    run(ours, stock)
    assert losses(ours) == losses(stock)
    assert_same(weights(ours), weights(stock))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_grpo_is_stock_trl_with_several_updates_of_a_batch(make_trainer, ratio):
    settings = {"steps": 6, "updates_per_rollout": 2, "num_iterations": 2, "loss": LossConfig(ratio=ratio, kl_beta=0.1)}
    ours, stock = make_trainer(GRPO(), **settings), stock_twin(make_trainer(GRPO(), **settings))
    run(ours, stock)
    # Not the same bits: our slices end where their longest completion ends, which changes the order of sums.
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-4, abs=1e-6)
    for name, weight in weights(stock).items():
        torch.testing.assert_close(weights(ours)[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("micro_batch_size", [None, 16])
def test_progrpo_makes_exactly_as_many_forward_passes_as_grpo(make_trainer, micro_batch_size):
    counts, tokens = [], []
    for algorithm in (GRPO(), ProGRPO(alpha=0.0), ProGRPO(alpha=0.0, prompt_confidence="none")):
        trainer = make_trainer(algorithm, steps=2, micro_batch_size=micro_batch_size)
        calls = []
        trainer.model.model.register_forward_hook(
            lambda module, args, output, calls=calls: calls.append(output.last_hidden_state.shape[:2].numel())
        )
        run(trainer)
        counts.append(len(calls))
        tokens.append(sum(calls))
    assert len(set(counts)) == 1, counts
    assert len(set(tokens)) == 1, tokens


def plain_confidences(model, row, completion_length, temperature):
    """Confidences of one rollout without padding, engine or masks, in float64."""
    ids = row[row != -1]
    logits = model.double()(ids[None]).logits[0, :-1] / temperature
    logprobs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    prompt, answer = logprobs[:-completion_length], logprobs[-completion_length:]
    k = math.ceil(completion_length / 5)
    return prompt.mean().exp().item(), answer.sort().values[:k].mean().exp().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_confidences_are_those_of_a_plain_recomputation(make_trainer, temperature, micro_batch_size):
    trainer = make_trainer(ProGRPO(alpha=1.0), temperature=temperature, micro_batch_size=micro_batch_size)
    generated = {}
    inner = trainer._generate_and_score_completions

    def keep(inputs):
        batch = inner(inputs)
        generated.update(
            {key: batch[key].clone() for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
        )
        return batch

    trainer._generate_and_score_completions = keep
    trainer.args.max_steps = 1
    reference = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path, dtype=torch.float64)
    run(trainer)

    assert generated["prompt_mask"].eq(0).any(), "the prompts must differ in length for this test to mean anything"
    rollouts = trainer.rollouts
    for i in range(len(rollouts["reward"])):
        prompt = generated["prompt_ids"][i][generated["prompt_mask"][i].bool()]
        completion = generated["completion_ids"][i][generated["completion_mask"][i].bool()]
        expected = plain_confidences(reference, torch.cat([prompt, completion]), len(completion), temperature)
        assert rollouts["prompt_confidence"][i] == pytest.approx(expected[0], rel=1e-4)
        assert rollouts["answer_confidence"][i] == pytest.approx(expected[1], rel=1e-4)

    correct_PG = torch.tensor(rollouts["correct"]).view(-1, 8)
    gate = correct_PG.any(dim=1, keepdim=True).expand_as(correct_PG).flatten()
    assert gate.any()
    for i, (shift, c_q, c_o) in enumerate(
        zip(rollouts["advantage_shift"], rollouts["prompt_confidence"], rollouts["answer_confidence"], strict=True)
    ):
        assert shift == pytest.approx((c_q - c_o) if gate[i] else 0.0, abs=1e-6)


def test_rows_that_only_fill_up_have_no_confidence(make_trainer):
    """A rank with fewer groups than another trains on some without a signal, their tokens masked."""
    trainer = make_trainer(ProGRPO(alpha=1.0), steps=1)
    keep_only(trainer, [False, True, True, True])
    select = trainer._rows_to_train_on

    def as_with_another_rank(inputs):
        rows = select(inputs)
        mask = inputs["completion_mask"] * inputs["live"][:, None]
        return None if rows is None else inputs | {"completion_mask": mask}

    trainer._rows_to_train_on = as_with_another_rank
    run(trainer)
    known = [not math.isnan(value) for value in trainer.rollouts["answer_confidence"]]
    assert known == trainer.rollouts["live"]


def test_buffered_rollouts_come_back_to_the_device(make_trainer):
    trainer = make_trainer(GRPO(), updates_per_rollout=2, prompts_per_step=2)
    trainer.args.max_steps = 1
    run(trainer)
    position = trainer.position()
    assert position["buffer"] is not None

    class Elsewhere:
        device = torch.device("meta")

    trainer.accelerator = Elsewhere()
    trainer.go_to(position)
    devices = {value.device.type for slice_ in trainer._buffered_inputs for value in slice_.values()}
    assert devices == {"meta"}


def test_group_mean_recentres_the_group(make_trainer):
    trainer = make_trainer(ProGRPO(alpha=1.0, prompt_confidence="group_mean"), steps=1)
    run(trainer)
    shift_PG = torch.tensor(trainer.rollouts["advantage_shift"]).view(-1, 8)
    torch.testing.assert_close(shift_PG.mean(dim=1), torch.zeros(4), atol=1e-6, rtol=0)
    assert shift_PG.abs().max() > 0


def test_the_same_seed_repeats_and_another_does_not(make_trainer):
    runs = [make_trainer(ProGRPO(alpha=1.0), seed=seed, steps=2) for seed in (3, 3, 4)]
    for trainer, seed in zip(runs, (3, 3, 4), strict=True):
        run(trainer, seed=seed)
    assert_same(weights(runs[0]), weights(runs[1]))
    assert any(not torch.equal(a, b) for a, b in zip(weights(runs[0]).values(), weights(runs[2]).values(), strict=True))


def test_answer_confidence_is_of_the_completion_tokens_only():
    logprobs = torch.log(torch.tensor([[0.9, 0.5, 0.1]]))
    assert answer_confidence(logprobs, torch.tensor([[1, 1, 0]])).item() == pytest.approx(0.5)


def keep_only(trainer, live):
    """Have dynamic sampling keep these groups of every batch."""
    collect = trainer.collector.collect
    trainer.collector.collect = lambda count: replace(collect(count), live=torch.tensor(live))


@pytest.mark.parametrize("micro_batch_size", [8, 16, None])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_entropy_bonus_keeps_its_weight_where_groups_are_left_out(make_trainer, aggregation, micro_batch_size):
    loss = LossConfig(aggregation=aggregation)
    values = []
    for coef in (0.0, 1.0):
        trainer = make_trainer(EntropyBonus(coef=coef, loss=loss), steps=1, micro_batch_size=micro_batch_size)
        keep_only(trainer, [False, False, False, True])
        run(trainer)
        values.append(losses(trainer)[0])
    entropy = next(row["entropy"] for row in trainer.state.log_history if "entropy" in row)
    assert values[0] - values[1] == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_an_update_is_averaged_over_what_it_keeps(make_trainer, aggregation):
    """Its ratios are 1, so that the first update's loss is minus the mean advantage."""
    loss = LossConfig(aggregation=aggregation)
    trainer = make_trainer(GRPO(loss=loss), steps=1, prompts_per_step=2, updates_per_rollout=2)
    keep_only(trainer, [True, True, False, False])
    run(trainer)
    rows = zip(*(trainer.rollouts[k] for k in ("advantage", "num_tokens", "live")), strict=True)
    kept = [(advantage, tokens if aggregation == "token_mean" else 1) for advantage, tokens, live in rows if live]
    expected = -sum(a * n for a, n in kept) / sum(n for _, n in kept)
    assert len(kept) == 16
    assert losses(trainer)[0] == pytest.approx(expected, abs=1e-6)
    if aggregation == "token_mean":
        assert abs(expected) > 1e-4, "else a wrong divisor would go unnoticed"
