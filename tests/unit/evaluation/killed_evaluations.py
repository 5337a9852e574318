"""Evaluate again and again, killed each time after a while, until one attempt ends; run by test_resume.

    python killed_evaluations.py DATASET CHECKPOINT OUTPUT CONFIG SEED

Attempts are forks, so that what is imported once is killed many times. Prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import progrpo.generation.transformers_engine
from progrpo.config import EvaluateConfig
from progrpo.evaluation.evaluate import evaluate
from progrpo.evaluation.shards import DIRECTORY, Shards


def num_done(shards):
    """Problems that are done; -1 where there is no directory, before the first shard or once all are merged."""
    try:
        return shards.num_done()
    except FileNotFoundError:
        return -1


def main() -> None:
    dataset, checkpoint, output = map(Path, sys.argv[1:4])
    config, seed = EvaluateConfig.model_validate_json(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    rng = random.Random(seed)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            evaluate(config, dataset=dataset, checkpoint=checkpoint, output=output)
            os._exit(0)
        shards = Shards(output / DIRECTORY, config.max_problems, config.num_samples)
        wanted = max(num_done(shards), 0) + rng.randint(0, 2)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0, status
                print(kills)
                return
            if num_done(shards) >= wanted:
                time.sleep(rng.random() * 0.05)  # in the middle of sampling, scoring, writing or merging
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                kills += os.WIFSIGNALED(status)
                if not os.WIFSIGNALED(status):
                    assert status == 0, status
                    print(kills)
                    return
                break
            time.sleep(0.002)


assert progrpo.generation.transformers_engine
if __name__ == "__main__":
    main()
