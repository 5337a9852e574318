"""Train a few steps on one rank and on two, and keep each step's gradients: the other half of test_ranks.py.

    python rank_gradients.py SETTINGS.json

reads ``{dataset, checkpoint, output, runs: {name: {arm, config}}}`` and writes the training run ``output/NAME`` and
``output/NAME.safetensors``, the whole gradient of each step as the optimizer is given it. Everything is imported once
and each run is forked; a program of its own, because a test runner has threads.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file

import progrpo.training.recorder
import progrpo.training.trainer  # before the fork
from progrpo.config import Arm, TrainConfig
from progrpo.training.distributed import leave_process_group
from progrpo.training.train import train


def keep_gradients(path, is_first):
    """Keep the gradient of every update, whole, as the optimizer is given it."""
    kept = {}
    recorder = progrpo.training.recorder.Recorder
    inner = recorder.on_pre_optimizer_step

    def outer(self, args, state, control, **kwargs):
        for name, parameter in self._trainer.model.named_parameters():
            if (gradient := parameter.grad) is None:
                continue
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            kept[f"{state.global_step + 1}.{name}"] = whole.detach().clone()
        if is_first:
            save_file(kept, path)
        return inner(self, args, state, control, **kwargs)

    recorder.on_pre_optimizer_step = outer


def run_rank(settings, name, rank, ranks, port):
    """Fork one rank of a run; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        output = Path(settings["output"])
        keep_gradients(output / f"{name}.safetensors", rank == 0)
        run = settings["runs"][name]
        train(
            Arm(**run["arm"]),
            3,
            TrainConfig(**run["config"]),
            dataset=Path(settings["dataset"]),
            checkpoint=Path(settings["checkpoint"]),
            output=output / name,
        )
        leave_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def main():
    """Make every run."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    for name, run in settings["runs"].items():
        ranks = run["config"].get("distributed", {}).get("num_processes", 1)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        pids = [run_rank(settings, name, rank, ranks, port) for rank in range(ranks)]
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        assert codes == [0] * ranks, f"{name}: {codes}"


if __name__ == "__main__":
    main()
