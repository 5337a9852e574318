"""The order in which a run goes through its problems."""

from __future__ import annotations

import torch


class PromptStream:
    """An endless stream of problems: a new permutation an epoch, each a function of the seed alone.

    Its whole state is ``position``, the number of problems taken so far. The first epoch has the order of TRL's
    ``RepeatSampler``; unlike there, no problem is left out where an epoch does not divide into batches, and a resumed
    run goes on in the epoch it was in.

    Args:
        num_problems: of the training split.
        seed: of the run.
        position: where to go on.
    """

    def __init__(self, num_problems: int, seed: int, position: int = 0) -> None:
        self._num_problems, self._seed, self.position = num_problems, seed, position
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> list[tuple[int, int]]:
        """Take the next ``count`` problems: (place in the stream, index of the problem) of each."""
        places = range(self.position, self.position + count)
        self.position += count
        return [(place, self._problem_at(place)) for place in places]

    def _problem_at(self, place: int) -> int:
        epoch, index = divmod(place, self._num_problems)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed)
            for _ in range(epoch + 1):  # a permutation takes milliseconds, also for a million problems
                self._order = torch.randperm(self._num_problems, generator=generator)
            self._epoch = epoch
        return int(self._order[index])
