"""From problems to groups of judged completions and their advantages: the left half of a training step.

    take prompts -> sample G completions each -> verify -> rewards -> advantages

With dynamic sampling, groups without a signal are replaced by groups of the next prompts, a bounded number of times.
Suffixes: P groups, G completions of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from progrpo.algorithms.advantage import has_signal
from progrpo.algorithms.shaping import overlong_penalty
from progrpo.config import Method
from progrpo.data.dataset import Problem
from progrpo.generation.engine import Completion
from progrpo.rewards import Verdict, verify_batch
from progrpo.training.prompts import PromptStream

T = TypeVar("T")


class RolloutEngine(Protocol):
    """What samples the policy's completions."""

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]]) -> list[Completion]:
        """Draw one completion of each prompt from the policy as it is now, at the rollout temperature.

        Args:
            prompts: token ids; the G prompts of a group are adjacent and equal.
            keys: what names each completion in the run: (place of its prompt in the stream, number in its group).

        Returns:
            a completion a prompt, in their order, with log-probabilities.
        """


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def batch_decode(self, token_ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each completion."""


@dataclass(frozen=True)
class Rollout:
    """One completion, its text and what the verifier says of it."""

    completion: Completion
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt.

    ``place`` is the prompt's place in the run's stream; it names the group on every rank.
    """

    place: int
    problem: Problem
    prompt_ids: Sequence[int]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class Judgement:
    """Rewards and advantages of P groups, each [P, G].

    ``rewards`` is what the advantage was made of, NaN where the verifier could not tell; ``penalties`` is the part of
    it that length took away, <= 0; ``gate`` is where the algorithm may re-weight the advantage.
    """

    correct: Tensor
    rewards: Tensor
    penalties: Tensor
    advantages: Tensor
    gate: Tensor

    @property
    def signal(self) -> Tensor:
        """[P] bool: whether a group moves the policy at all."""
        return has_signal(self.advantages, self.gate)


def judge(groups: Sequence[Group], method: Method, max_completion_tokens: int) -> Judgement:
    """Turn verdicts into rewards and rewards into advantages, as the algorithm at hand does it."""
    verdicts = [[rollout.verdict for rollout in group.rollouts] for group in groups]
    correct = torch.tensor([[v.correct for v in row] for row in verdicts])
    scored = torch.tensor([[v.scored for v in row] for row in verdicts])
    rewards = torch.where(scored, correct.float(), torch.nan)

    penalties = torch.zeros_like(rewards)
    if method.overlong_penalty is not None:
        shape = method.overlong_penalty
        lengths = torch.tensor([[len(r.completion.token_ids) for r in group.rollouts] for group in groups])
        penalties = overlong_penalty(lengths, max_completion_tokens, shape.buffer_frac, shape.weight)
    logprobs = torch.tensor([[r.completion.mean_logprob for r in group.rollouts] for group in groups])
    rewards = method.algorithm.rewards(rewards, logprobs) + penalties
    advantages = method.algorithm.advantages(rewards, method.loss)
    return Judgement(correct, rewards, penalties, advantages, method.algorithm.gate(correct, scored))


@dataclass(frozen=True)
class Batch:
    """What one batch of rollouts gives this rank to train on.

    ``groups`` are this rank's, as many on every rank. ``live`` [P] tells which of them dynamic sampling keeps; without
    it, all. ``resampled`` counts the groups that were sampled in place of others and ``rounds`` how often, on all
    ranks together.
    """

    groups: list[Group]
    judgement: Judgement
    live: Tensor
    rounds: int
    resampled: int

    def table(self) -> dict[str, list[Any]]:
        """Return the batch as columns, one entry a completion: what :mod:`progrpo.training.rollout_table` reads."""
        judgement = self.judgement
        rows = [(group, number, rollout) for group in self.groups for number, rollout in enumerate(group.rollouts)]
        return {
            "group": [group.place for group, _, _ in rows],
            "problem_id": [group.problem.id for group, _, _ in rows],
            "sample": [number for _, number, _ in rows],
            "prompt": ["\n".join(message["content"] for message in group.problem.prompt) for group, _, _ in rows],
            "completion": [rollout.text for _, _, rollout in rows],
            "answer": [rollout.verdict.answer for _, _, rollout in rows],
            "correct": [rollout.verdict.correct for _, _, rollout in rows],
            "scored": [rollout.verdict.scored for _, _, rollout in rows],
            "reward": judgement.rewards.flatten().tolist(),
            "overlong_penalty": judgement.penalties.flatten().tolist(),
            "advantage": judgement.advantages.flatten().tolist(),
            "num_tokens": [len(rollout.completion.token_ids) for _, _, rollout in rows],
            "truncated": [rollout.completion.finish_reason == "length" for _, _, rollout in rows],
            "mean_logprob": [rollout.completion.mean_logprob for _, _, rollout in rows],
            "live": self.live.repeat_interleave(len(rows) // len(self.groups)).tolist(),
        }


@dataclass
class Collector:
    """Collects batches of rollouts.

    Attributes:
        stream: the order of the problems; the same on every rank.
        problems: the training split.
        prompts: token ids of each problem's prompt.
        engine: what samples.
        decoder: the tokenizer.
        method: the algorithm in force.
        group_size: G.
        max_completion_tokens: limit of a completion, EOS included.
        rank: this process, from 0.
        num_ranks: processes; each takes an equal share of every update's groups, which are never split.
        num_updates: into which a batch is cut, in the order of the stream, whatever the number of ranks.
        gather: returns the concatenated lists of all ranks; called only with several ranks and dynamic sampling.
    """

    stream: PromptStream
    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    engine: RolloutEngine
    decoder: Decoder
    method: Method
    group_size: int
    max_completion_tokens: int
    rank: int = 0
    num_ranks: int = 1
    num_updates: int = 1
    gather: Callable[[list[Group]], list[Group]] = list

    def collect(self, num_groups: int) -> Batch:
        """Sample ``num_groups`` groups, over all ranks together, and judge them."""
        if self.method.dynamic_sampling is None:
            groups = self._sample(self._share(self.stream.take(num_groups), self.num_updates))
            judgement = self._judge(groups)
            return Batch(groups, judgement, torch.ones(len(groups), dtype=torch.bool), rounds=0, resampled=0)

        groups = self._sample_everywhere(self.stream.take(num_groups))
        signal = self._judge(groups).signal
        rounds = 0
        while (missing := num_groups - int(signal.sum())) > 0 and rounds < self.method.dynamic_sampling.max_rounds:
            groups += self._sample_everywhere(self.stream.take(missing))
            signal = self._judge(groups).signal
            rounds += 1
        # Groups with a signal first, in the order of the stream; the others only fill up what is missing.
        order = sorted(range(len(groups)), key=lambda p: not signal[p])[:num_groups]
        # Within an update the former come last: its last forward pass is the one in which ranks exchange gradients.
        size = num_groups // self.num_updates
        order = [
            p
            for start in range(0, num_groups, size)
            for p in sorted(order[start : start + size], key=signal.__getitem__)
        ]
        chosen = self._share([(groups[p], bool(signal[p])) for p in order], self.num_updates)
        mine = [group for group, _ in chosen]
        live = torch.tensor([has for _, has in chosen])
        return Batch(mine, self._judge(mine), live, rounds, len(groups) - num_groups)

    def _judge(self, groups: Sequence[Group]) -> Judgement:
        return judge(groups, self.method, self.max_completion_tokens)

    def _share(self, items: Sequence[T], num_blocks: int = 1) -> list[T]:
        """Return this rank's part of each block of items."""
        block, each = len(items) // num_blocks, len(items) // num_blocks // self.num_ranks
        starts = [b * block + self.rank * each for b in range(num_blocks)]
        return [item for start in starts for item in items[start : start + each]]

    def _sample_everywhere(self, taken: Sequence[tuple[int, int]]) -> list[Group]:
        """Sample on all ranks and return all groups on each of them, in the order of the stream."""
        if self.num_ranks == 1:
            return self._sample(taken)
        # Every rank must take part in every forward pass, so the last prompt fills up uneven shares.
        padded = [*taken, *[taken[-1]] * (-len(taken) % self.num_ranks)]
        return self.gather(self._sample(self._share(padded)))[: len(taken)]

    def _sample(self, taken: Sequence[tuple[int, int]]) -> list[Group]:
        G = self.group_size
        completions = self.engine.sample(
            [self.prompts[problem] for _, problem in taken for _ in range(G)],
            [(place, number) for place, _ in taken for number in range(G)],
        )
        texts = self.decoder.batch_decode([list(c.token_ids) for c in completions], skip_special_tokens=True)
        owners = [self.problems[problem] for _, problem in taken for _ in range(G)]
        verdicts = verify_batch([(p.task, p.answer, text) for p, text in zip(owners, texts, strict=True)])
        rollouts = [Rollout(*parts) for parts in zip(completions, texts, verdicts, strict=True)]
        return [
            Group(place, self.problems[problem], self.prompts[problem], tuple(rollouts[p * G : (p + 1) * G]))
            for p, (place, problem) in enumerate(taken)
        ]
