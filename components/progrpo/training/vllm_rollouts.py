"""Rollouts from vLLM, kept in step with the trained policy by TRL's own weight sync.

TRL starts the engine or connects to the server, pushes the weights (gathered from shards, adapters merged) and puts the
engine to sleep. What it leaves open is closed here: the arithmetic (:func:`engine_defaults`), a seed for each
completion and which policy a rollout is of (:class:`VLLMRollouts`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

from progrpo.config import VLLMEngineConfig
from progrpo.errors import ConfigError
from progrpo.generation.engine import Completion
from progrpo.generation.vllm_engine import import_vllm, request_seed, untouched_generators

_CONCURRENT_REQUESTS = 64  # to a server; as many connections as TRL's client keeps open


def vllm_arguments(
    engine: VLLMEngineConfig,
    *,
    max_model_tokens: int,
    eos_token_ids: Sequence[int],
    device: Literal["cpu", "cuda"],
    num_processes: int = 1,
) -> dict[str, Any]:
    """Return the fields of TRL's ``GRPOConfig`` that an engine stands for.

    Args:
        engine: the settings.
        max_model_tokens: longest prompt, held-out ones included, and completion together; at most the context.
        eos_token_ids: tokens that end a completion.
        device: the policy is trained on.
        num_processes: ranks that train together.

    Raises:
        ConfigError: settings that do not fit the device or the number of ranks.
    """
    if engine.mode == "server" and device != "cuda":
        raise ConfigError(
            "engine.mode is 'server', but weights reach a vLLM server over NCCL, from one GPU to another, and training "
            "is on the CPU. Set train.device to 'cuda' or engine.mode to 'colocate'."
        )
    if engine.mode == "colocate" and engine.sleep and device != "cuda":
        raise ConfigError("engine.sleep is true, but only a vLLM on a GPU can sleep. Set engine.sleep to false.")
    if engine.mode == "colocate" and num_processes % engine.tensor_parallel:
        raise ConfigError(
            f"engine.tensor_parallel is {engine.tensor_parallel}, which does not divide the {num_processes} processes "
            f"of distributed.num_processes. Set it to a divisor of {num_processes}."
        )
    arguments: dict[str, Any] = {
        "use_vllm": True,
        "vllm_mode": engine.mode,
        "vllm_importance_sampling_correction": engine.correction != "none",
        "vllm_importance_sampling_clip_max": engine.max_ratio,
        # With ignore_eos these tokens end a completion and no others: vLLM would add those of generation_config.
        "generation_kwargs": {"stop_token_ids": list(eos_token_ids), "ignore_eos": True},
    }
    if engine.correction != "none":
        arguments["vllm_importance_sampling_mode"] = engine.correction
    if engine.mode == "server":
        return arguments | {"vllm_server_base_url": engine.server_url}
    return arguments | {
        "vllm_gpu_memory_utilization": engine.memory_frac,
        "vllm_tensor_parallel_size": engine.tensor_parallel,
        "vllm_enable_sleep_mode": engine.sleep,
        "vllm_max_model_length": max_model_tokens,
    }


@contextmanager
def engine_defaults(dtype: Literal["float32", "bfloat16"]) -> Iterator[None]:
    """Have TRL start vLLM in the trainer's arithmetic; build the trainer inside.

    TRL leaves the dtype to vLLM, which takes bfloat16 where the checkpoint is float32: on the embedded checkpoint the
    sampled log-probabilities were then off by up to 0.05 nats a token, instead of 4e-6 (docs/vllm.md). It also leaves
    ``generation_config`` open.

    Raises:
        ConfigError: no vLLM.
    """
    import_vllm()
    from trl.generation import vllm_generation
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    llm, packs = vllm_generation.LLM, _custom_ops._supports_onednn
    vllm_generation.LLM = functools.partial(llm, dtype=dtype, generation_config="vllm")
    if current_platform.is_cpu():
        # There vLLM packs each linear layer's weights for oneDNN while it starts, and no later update reaches them.
        _custom_ops._supports_onednn = False
    try:
        yield
    finally:
        vllm_generation.LLM, _custom_ops._supports_onednn = llm, packs


class VLLMRollouts:
    """Samples from the vLLM of a TRL trainer; see :class:`progrpo.training.rollouts.RolloutEngine`.

    Args:
        trainer: a GRPOTrainer with ``use_vllm``; its VLLMGeneration has the temperature and the length limit.
        seed: of the run.
    """

    def __init__(self, trainer: Any, *, seed: int) -> None:
        self._trainer, self._generation, self._seed = trainer, trainer.vllm_generation, seed

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]]) -> list[Completion]:
        """Draw one completion of each prompt from the policy as it is now; every rank must call it.

        Args:
            prompts: token ids; the same number on every rank that shares an engine.
            keys: what names each completion in the run; with the run's seed it decides what is drawn.
        """
        self._sync()
        seeds = [request_seed(self._seed, key) for key in keys]
        with self._seeded(seeds), untouched_generators():
            _, token_ids, logprobs, _ = self._generation.generate(
                prompts=[list(prompt) for prompt in prompts], images=None, num_generations=1
            )
        eos = self._generation.generation_kwargs["stop_token_ids"]
        return [
            Completion(
                tuple(ids),
                "stop" if ids[-1] in eos else "length",
                # TRL turns a NaN into None
                tuple(float("nan") if token[0] is None else token[0] for token in row),
            )
            for ids, row in zip(token_ids, logprobs, strict=True)
        ]

    def _sync(self) -> None:
        """Push the weights, unless vLLM has those of this step; TRL keeps the same account for its own sampling."""
        step = self._trainer.state.global_step
        if self._trainer._last_loaded_step != step:
            self._generation.sync_weights()
            self._trainer._last_loaded_step = step

    @contextmanager
    def _seeded(self, seeds: list[int]) -> Iterator[None]:
        """Give each request a seed: TRL has one for all, with which the G completions of a prompt would be equal."""
        generation = self._generation
        if generation.mode == "server":  # the first rank sends the requests of all
            from accelerate.utils import gather_object

            name, seeds = "vllm_client", gather_object(seeds)
        else:
            name, seeds = "llm", self._seeds_of_engine(seeds)
        inner = getattr(generation, name, None)  # only the first rank has a client
        outer = _SeededClient(inner, seeds) if name == "vllm_client" else _SeededLLM(inner, seeds)
        setattr(generation, name, outer)
        try:
            yield
        finally:
            setattr(generation, name, inner)

    def _seeds_of_engine(self, seeds: list[int]) -> list[int]:
        """Return the seeds of all ranks that hold one engine together, in the order TRL gathers their prompts."""
        size = self._generation.tensor_parallel_size
        if size == 1:
            return seeds
        import torch

        gathered: list[Any] = [None] * size
        torch.distributed.all_gather_object(gathered, seeds, group=self._generation.tp_group)
        return [seed for part in gathered for seed in part]


class _SeededLLM:
    """A vLLM engine whose requests get seeds of their own; everything else is the engine's."""

    def __init__(self, llm: Any, seeds: Sequence[int]) -> None:
        self._llm, self._seeds = llm, seeds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompts: Sequence[Any], sampling_params: Any, **kwargs: Any) -> Any:
        params = []
        for seed in self._seeds:
            own = sampling_params.clone()
            own.seed, own.detokenize = seed, False  # TRL reads token ids only
            params.append(own)
        return self._llm.generate(prompts, sampling_params=params, **kwargs)


class _SeededClient:
    """TRL's client of a vLLM server, sending a request a completion: a body has one seed for all its prompts."""

    def __init__(self, client: Any, seeds: Sequence[int]) -> None:
        self._client, self._seeds = client, seeds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(
        self, prompts: Sequence[Any], features: Any = None, generation_kwargs: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        assert features is None, "prompts are token ids"
        assert len(prompts) == len(self._seeds)

        def send(prompt: Any, seed: int) -> dict[str, list[Any]]:
            seeded = {**(generation_kwargs or {}), "seed": seed}
            answer: dict[str, list[Any]] = self._client.generate([prompt], generation_kwargs=seeded, **kwargs)
            return answer

        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            answers = list(pool.map(send, prompts, self._seeds))
        return {key: [row for answer in answers for row in answer[key]] for key in answers[0]}
