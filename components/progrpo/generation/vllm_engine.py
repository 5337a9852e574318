"""The engine on vLLM: the engine of choice on a GPU.

Each completion is a request of its own with a seed of its own, so what is drawn depends on the seed and the
completion's key and not on its place in a batch; the G requests of a prompt share it through vLLM's prefix cache.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from progrpo.checkpoints.preflight import first_line
from progrpo.config import VLLMEngineConfig
from progrpo.errors import ConfigError
from progrpo.generation.engine import Completion, SamplingSettings, refuse_empty


def import_vllm() -> Any:
    """Import vLLM, which is large and optional, to start an engine.

    Raises:
        ConfigError: it is not installed, or does not load.
    """
    try:
        import vllm
    except (ImportError, RuntimeError, OSError) as error:  # a torch it was not built for fails in any of these ways
        raise ConfigError(
            f"engine.type is 'vllm', but vllm cannot be imported ({first_line(error)}). Install the gpu extra, "
            f"pip install 'progrpo[gpu]', or set engine.type to 'transformers'."
        ) from error
    # An engine nobody holds any more takes vLLM's process groups along when it is collected: before the next one makes
    # its own, not while it samples.
    gc.collect()
    return vllm


def request_seed(seed: int, key: Sequence[int]) -> int:
    """Return the seed of one completion's request, 63 bits: a function of the run's seed and the completion's key."""
    return int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Give torch's global generators their state back: vLLM draws from them also where every request has a seed."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


class VLLMEngine:
    """Samples with a vLLM engine in this process.

    Nothing is taken from the checkpoint's generation_config, and no tokenizer is loaded: token ids in, token ids out.

    Args:
        checkpoint: a Hugging Face directory with safetensors.
        config: memory and tensor parallelism; ``sleep`` and ``correction`` matter to training only.
        dtype: of weights and arithmetic. vLLM's own choice would be bfloat16 where the checkpoint is float32.
        eos_token_ids: tokens that end a completion, at least one.
        max_model_tokens: longest prompt and completion together; None: the model's context.

    Raises:
        ConfigError: no vLLM, ``mode`` server, or an engine that does not start (unknown architecture, no memory).
    """

    def __init__(
        self,
        checkpoint: Path,
        config: VLLMEngineConfig,
        *,
        dtype: Literal["float32", "bfloat16"],
        eos_token_ids: Sequence[int],
        max_model_tokens: int | None = None,
    ) -> None:
        if not eos_token_ids:
            raise ConfigError("eos_token_ids is empty: at least one token must end a completion.")
        if config.mode == "server":
            raise ConfigError(
                f"engine.mode is 'server' ({config.server_url}), but an evaluation loads its checkpoint into a vLLM "
                f"of its own. Set engine.mode to 'colocate'."
            )
        # In another process the engine starts on requests while they still come in: what shares a batch, and with it
        # the rounding, would depend on timing.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        vllm = import_vllm()
        self._params, self._eos = vllm.SamplingParams, list(eos_token_ids)
        try:
            self._llm: Any = vllm.LLM(
                model=os.fspath(checkpoint),
                dtype=dtype,
                max_model_len=max_model_tokens,
                gpu_memory_utilization=config.memory_frac,
                tensor_parallel_size=config.tensor_parallel,
                enable_prefix_caching=True,
                generation_config="vllm",
                load_format="safetensors",
                trust_remote_code=False,
                skip_tokenizer_init=True,
                seed=0,  # requests bring their own
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"vLLM does not start with {checkpoint}: {first_line(error)}. Change engine.memory_frac (now "
                f"{config.memory_frac:g}) or engine.tensor_parallel (now {config.tensor_parallel}), or set engine.type "
                f"to 'transformers'."
            ) from error

    def complete(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Completion]:
        """Draw completions; see :meth:`progrpo.generation.engine.Engine.complete`.

        Raises:
            DataError: an empty prompt.
        """
        refuse_empty(prompts)
        if not prompts:
            return []
        # Keys and values of an earlier call were computed in batches of another shape; their rounding would be felt.
        self._llm.reset_prefix_cache()
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [
            self._params(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
                stop_token_ids=self._eos,  # unlike stop strings, they stay in token_ids
                ignore_eos=True,  # or vLLM adds the EOS tokens of the checkpoint's generation_config
                seed=request_seed(seed, key),
                detokenize=False,
            )
            for key in keys
        ]
        with untouched_generators():
            outputs = self._llm.generate(requests, params, use_tqdm=False)
        return [Completion(tuple(o.token_ids), o.finish_reason) for output in outputs for o in output.outputs]

    def close(self) -> None:
        """Stop the engine and give its memory back.

        vLLM keeps one set of process groups a process, which go with it: no other engine of this process that is open
        now can sample afterwards, a new one can.
        """
        import torch

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
