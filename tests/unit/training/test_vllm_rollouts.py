"""What needs no vLLM: the settings TRL gets, and what is said where they do not fit. The rest is in tests/vllm_cpu."""

from importlib import util

import pytest

from progrpo.config import VLLMEngineConfig
from progrpo.errors import ConfigError
from progrpo.generation.vllm_engine import VLLMEngine, request_seed
from progrpo.training.vllm_rollouts import engine_defaults, vllm_arguments

SERVER = VLLMEngineConfig(mode="server", server_url="http://vllm:8000")


def _arguments(engine: VLLMEngineConfig, **more) -> dict:
    return vllm_arguments(engine, **{"max_model_tokens": 96, "eos_token_ids": [2, 5], "device": "cuda", **more})


def test_colocate() -> None:
    engine = VLLMEngineConfig(memory_frac=0.4, tensor_parallel=2, correction="token_truncate", max_ratio=2.5)
    assert _arguments(engine, num_processes=4) == {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_tensor_parallel_size": 2,
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": 96,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.5,
        "generation_kwargs": {"stop_token_ids": [2, 5], "ignore_eos": True},
    }


def test_server_without_correction() -> None:
    assert _arguments(SERVER.model_copy(update={"correction": "none"})) == {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": "http://vllm:8000",
        "vllm_importance_sampling_correction": False,
        "vllm_importance_sampling_clip_max": 3.0,
        "generation_kwargs": {"stop_token_ids": [2, 5], "ignore_eos": True},
    }


@pytest.mark.parametrize("engine", [VLLMEngineConfig(), SERVER])
def test_trl_knows_every_argument(engine: VLLMEngineConfig, tmp_path) -> None:
    from trl import GRPOConfig

    arguments = _arguments(engine)
    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **arguments)
    assert {name: getattr(config, name) for name in arguments} == arguments


@pytest.mark.parametrize(
    ("engine", "more", "message"),
    [
        (VLLMEngineConfig(), {"device": "cpu"}, "engine.sleep is true"),
        (SERVER, {"device": "cpu"}, "over NCCL"),
        (VLLMEngineConfig(tensor_parallel=4), {"num_processes": 6}, "does not divide the 6 processes"),
    ],
)
def test_settings_that_do_not_fit(engine: VLLMEngineConfig, more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _arguments(engine, **more)


def test_seeds_are_named_by_run_and_key() -> None:
    keys = [(place, number) for place in range(50) for number in range(16)]
    seeds = {request_seed(seed, key) for seed in (0, 1) for key in keys}
    assert len(seeds) == 2 * len(keys)
    assert max(seeds) < 2**63
    assert request_seed(3, (1, 2)) == request_seed(3, (1, 2))


@pytest.mark.skipif(util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_install(tmp_path) -> None:
    with pytest.raises(ConfigError, match="Install the gpu extra"), engine_defaults("float32"):
        pass
    with pytest.raises(ConfigError, match="Install the gpu extra"):
        VLLMEngine(tmp_path, VLLMEngineConfig(), dtype="float32", eos_token_ids=[2])


def test_evaluation_has_no_server(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"Set engine\.mode to 'colocate'"):
        VLLMEngine(tmp_path, SERVER, dtype="float32", eos_token_ids=[2])
