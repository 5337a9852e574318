"""From problems to judged groups: order, shares of ranks, dynamic sampling. The engine is scripted, so that each
answer, and with it each reward, can be read off the test."""

import pytest
import torch

from progrpo.config import GRPO, DynamicSampling, ProGRPO, TrainConfig, Unlikeliness, method_of
from progrpo.data.dataset import Problem
from progrpo.generation.engine import Completion
from progrpo.training.prompts import PromptStream
from progrpo.training.rollouts import Collector

PROBLEMS = [Problem(f"p{i}", [{"role": "user", "content": str(i)}], "1", "exact", "test") for i in range(12)]


class ScriptedEngine:
    """Answers place k of the stream with as many right completions as the script says."""

    def __init__(self, script):
        self.script, self.asked = script, []

    def sample(self, prompts, keys):
        self.asked += [place for place, number in keys if number == 0]
        return [Completion((int(number < self.script[place]), 9), "stop", (-0.5, -0.5)) for place, number in keys]


class Decoder:
    def batch_decode(self, token_ids, *, skip_special_tokens):
        return [str(ids[0]) for ids in token_ids]


def collector(script, algorithm, **ranks):
    return Collector(
        stream=PromptStream(len(PROBLEMS), seed=0),
        problems=PROBLEMS,
        prompts=[[5, i] for i in range(len(PROBLEMS))],
        engine=ScriptedEngine(script),
        decoder=Decoder(),
        method=method_of(algorithm, TrainConfig(group_size=4)),
        group_size=4,
        max_completion_tokens=2,
        **ranks,
    )


def places(batch):
    return [group.place for group in batch.groups]


def test_without_dynamic_sampling_every_group_is_trained_on():
    batch = collector([0, 4, 2, 0], GRPO()).collect(4)
    assert places(batch) == [0, 1, 2, 3]
    assert batch.live.all()
    assert batch.judgement.signal.tolist() == [False, False, True, False]
    assert (batch.rounds, batch.resampled) == (0, 0)


def test_groups_without_a_signal_are_replaced_by_the_next_prompts():
    #        0  1  2  3 | 4  5  6 | 7
    script = [0, 2, 4, 0, 1, 0, 3, 2]
    source = collector(script, GRPO(dynamic_sampling=DynamicSampling(max_rounds=5)))
    batch = source.collect(4)
    assert places(batch) == [1, 4, 6, 7]
    assert batch.live.all()
    assert (batch.rounds, batch.resampled) == (2, 4)
    assert source.stream.position == 8
    assert source.engine.asked == list(range(8)), "each prompt is sampled once"


def test_resampling_is_bounded_and_what_is_left_is_named():
    batch = collector([0, 2] + [0] * 10, GRPO(dynamic_sampling=DynamicSampling(max_rounds=2))).collect(4)
    assert (batch.rounds, batch.resampled) == (2, 6)
    assert places(batch) == [0, 2, 3, 1], "the group with a signal, and the oldest without"
    assert batch.live.tolist() == [False, False, False, True], "ranks exchange gradients in the last forward pass"


def test_updates_fill_up_one_after_the_other_and_each_ends_with_a_signal():
    script = [0, 2, 0, 2, 2] + [0] * 7
    batch = collector(script, GRPO(dynamic_sampling=DynamicSampling(max_rounds=1)), num_updates=3).collect(6)
    assert places(batch) == [1, 3, 0, 4, 2, 5]
    assert batch.live.tolist() == [True, True, False, True, False, False]


def test_an_all_correct_group_is_a_signal_to_progrpo_only():
    sampling = DynamicSampling(max_rounds=1)
    progrpo = collector([4, 0, 4, 2] + [2] * 8, ProGRPO(dynamic_sampling=sampling)).collect(4)
    grpo = collector([4, 0, 4, 2] + [2] * 8, GRPO(dynamic_sampling=sampling)).collect(4)
    assert (places(progrpo), progrpo.resampled) == ([0, 2, 3, 4], 1)
    assert (places(grpo), grpo.resampled) == ([3, 4, 5, 6], 3)


@pytest.mark.parametrize("algorithm", [GRPO(), GRPO(dynamic_sampling=DynamicSampling(max_rounds=3))])
def test_two_ranks_share_what_one_would_take(algorithm):
    """Each update has the groups it has on one rank; with dynamic sampling too, although missing groups are odd."""
    script = [0, 2, 4, 0, 1, 0, 3, 2, 2, 2, 2, 2]
    whole = collector(script, algorithm, num_updates=2).collect(4)

    sources = [collector(script, algorithm, num_updates=2, rank=rank, num_ranks=2) for rank in range(2)]
    if algorithm.dynamic_sampling is None:
        parts = [source.collect(4) for source in sources]
    else:  # what every rank would send in each round, rank by rank
        taken = PromptStream(len(PROBLEMS), seed=0)
        rounds = []
        for count in (4, 3, 1):
            items = taken.take(count)
            padded = [*items, *[items[-1]] * (count % 2)]
            rounds.append(collector(script, algorithm)._sample(padded))
        parts = []
        for source in sources:
            gathered = iter(rounds)
            source.gather = lambda own, gathered=gathered: next(gathered)
            parts.append(source.collect(4))
    # Groups 0, 1 are of the first update, 2, 3 of the second; a rank has one of each.
    assert [places(part) for part in parts] == [places(whole)[0::2], places(whole)[1::2]]
    assert {source.stream.position for source in sources} == {8 if algorithm.dynamic_sampling else 4}


def test_unscored_completions_get_no_advantage(monkeypatch):
    from progrpo.rewards import Verdict
    from progrpo.training import rollouts

    def verify(items):
        return [Verdict(text == "1", text, scored=i % 4 != 3) for i, (_, _, text) in enumerate(items)]

    monkeypatch.setattr(rollouts, "verify_batch", verify)
    judgement = collector([2, 2], ProGRPO()).collect(2).judgement
    assert judgement.rewards.isnan().tolist() == [[False, False, False, True]] * 2
    assert (judgement.advantages[:, 3] == 0).all()
    assert not judgement.gate[:, 3].any()
    assert judgement.gate[:, :3].all()


def test_a_log_probability_that_vllm_left_out_keeps_its_completion_in_the_ranking():
    source = collector([4], Unlikeliness(beta=0.4))
    logprobs = [(-0.1, float("nan")), (-0.2, -0.2), (-0.3, -0.3), (-0.4, -0.4)]
    source.engine.sample = lambda prompts, keys: [
        Completion((int(True), 9), "stop", logprobs[number]) for _, number in keys
    ]
    assert source.collect(1).judgement.rewards.tolist() == [pytest.approx([0.7, 0.8, 0.9, 1.0])]


def test_the_stream_takes_every_problem_once_an_epoch_and_knows_its_place():
    stream = PromptStream(5, seed=3)
    first = [stream.take(2) for _ in range(5)]
    order = [problem for items in first for _, problem in items]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert order[:5] != order[5:], "a new permutation an epoch"
    resumed = PromptStream(5, seed=3, position=6)  # in the second epoch
    assert [item for items in (resumed.take(2), resumed.take(2)) for item in items] == [*first[3], *first[4]]
    generator = torch.Generator().manual_seed(3)
    assert order[:5] == torch.randperm(5, generator=generator).tolist(), "TRL's first epoch"
