"""Train in child processes and kill them: the other half of test_resume.py.

Everything is imported once, then each attempt is a fork, so that an attempt costs no imports and a kill is a real
SIGKILL. A program of its own, because a test runner has threads and a fork with threads may hang.

    python killed_runs.py SETTINGS.json

reads ``{dataset, checkpoint, arm, config, output, kills, ranks, seed}``, trains until the run ends although the first
``kills`` attempts are killed at random points, and prints how many were. Attempt i writes ``output/i``.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

import progrpo.training.resume
import progrpo.training.trainer  # noqa: F401  # before the fork
from progrpo.config import Arm, TrainConfig
from progrpo.training.distributed import leave_process_group
from progrpo.training.train import train


def start(settings, output, rank, port):
    """Fork one rank of an attempt; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if settings["ranks"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(settings["ranks"]),
                "LOCAL_WORLD_SIZE": str(settings["ranks"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        train(
            Arm(**settings["arm"]),
            3,
            TrainConfig(**settings["config"]),
            dataset=Path(settings["dataset"]),
            checkpoint=Path(settings["checkpoint"]),
            output=output,
        )
        leave_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def steps_of(output):
    path = output / "metrics.jsonl"
    return path.read_text().count('"train/loss"') if path.exists() else 0


def attempt(settings, output, kill_after):
    """Run once; kill after so many new steps and a moment. Return whether the run ended by itself, and well."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = [start(settings, output, rank, port) for rank in range(settings["ranks"])]
    if kill_after is not None:
        first, moment = None, random.random() * 0.3
        while True:
            if (done := os.waitpid(pids[0], os.WNOHANG))[0]:
                assert done[1] == 0, f"attempt {output.name} failed by itself"
                return True
            steps = steps_of(output)
            first = steps if first is None and steps else first
            if kill_after == 0 or (first is not None and steps - first >= kill_after - 1):
                time.sleep(moment)
                break
            time.sleep(0.005)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    assert kill_after is not None or codes == [0] * len(pids), codes
    return kill_after is None


def main():
    """Run attempts until one ends by itself."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    random.seed(settings["seed"])
    torch.set_num_threads(1)
    kills = 0
    while True:
        output = Path(settings["output"]) / str(kills)
        kill_after = random.randint(0, 5) if kills < settings["kills"] else None
        if attempt(settings, output, kill_after):
            break
        kills += 1
    print(json.dumps({"kills": kills, "output": str(output)}))


if __name__ == "__main__":
    main()
