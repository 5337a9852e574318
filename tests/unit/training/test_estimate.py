"""The memory estimate against what autograd really saves, against sums by hand, and what is advised."""

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from architectures import QWEN_05B, QWEN_7B, qwen2
from progrpo.checkpoints.architecture import Architecture, read_architecture
from progrpo.config import GRPO, Arm, EvaluateConfig, LoRAConfig, LossConfig, ProGRPO, TrainConfig, VLLMEngineConfig
from progrpo.errors import CheckpointError, ConfigError
from progrpo.training.advice import Run, advise
from progrpo.training.devices import GPUS, gpu_bytes, host_bytes
from progrpo.training.estimate import (
    MemoryEstimate,
    estimate_evaluation,
    estimate_memory,
    num_adapter_parameters,
    saved_by_layer,
)

ARM = Arm(name="progrpo", algorithm=ProGRPO())
GB = 10**9

# --- the architecture ------------------------------------------------------------------------------------------------

MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (functools.partial(Qwen3Config, head_dim=64), Qwen3ForCausalLM),
}


def make_model(kind, num_layers=2, kv_heads=2):
    config, model = MODELS[kind]
    return model(
        config(
            hidden_size=64,
            num_hidden_layers=num_layers,
            intermediate_size=176,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            vocab_size=50,
            tie_word_embeddings=True,
        )
    )


@functools.cache
def saved_architecture(kind, directory, kv_heads=2) -> Architecture:
    make_model(kind, kv_heads=kv_heads).save_pretrained(directory)
    return read_architecture(Path(directory))


def test_it_is_read_from_config_and_headers(embedded_checkpoint):
    model = LlamaForCausalLM.from_pretrained(embedded_checkpoint)
    found = read_architecture(embedded_checkpoint)
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert found.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())
    assert found.root_parameters + 3 * found.layer_parameters == found.num_parameters
    assert (found.num_layers, found.hidden_size, found.num_heads, found.head_dim) == (3, 128, 4, 32)
    assert (found.vocab_size, found.context_length, found.qk_norm) == (85, 128, False)
    names = {name for name, module in model.model.layers.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {linear.name.removeprefix("model.layers.") for linear in found.linears} == names


def test_adapters_are_those_of_peft(tmp_path):
    for targets in (None, ("q_proj", "down_proj")):
        train = TrainConfig(lora=LoRAConfig(rank=8, target_modules=targets))
        peft = get_peft_model(
            make_model("qwen2"), LoraConfig(r=8, target_modules=list(targets) if targets else "all-linear")
        )
        found = saved_architecture("qwen2", tmp_path / "model")
        assert num_adapter_parameters(found, train) == sum(p.numel() for p in peft.parameters() if p.requires_grad)


def test_a_config_without_sizes_says_which_is_missing(embedded_checkpoint, tmp_path):
    for path in embedded_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers"', '"depth"'))
    with pytest.raises(CheckpointError, match=r"config\.json names no num_hidden_layers"):
        read_architecture(tmp_path)


# --- activations -----------------------------------------------------------------------------------------------------


def saved_bytes(model, *, bfloat16):
    """Bytes that autograd keeps of a forward pass of 3 x 20 tokens, one of them padding, but for the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    ids, mask = torch.ones(3, 20, dtype=torch.long), torch.ones(3, 20, dtype=torch.long)
    mask[0, 0] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16),
    ):
        output = model(input_ids=ids, attention_mask=mask)
    del output
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_layer_saves_what_is_estimated_to_the_byte(kind, dtype, lora, tmp_path):
    def saved(num_layers):
        model = make_model(kind, num_layers)
        if lora:
            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
            model.enable_input_require_grads()
        return saved_bytes(model.train(), bfloat16=dtype == "bfloat16")

    found = saved_architecture(kind, tmp_path / "model")
    train = TrainConfig(dtype=dtype, lora=LoRAConfig(rank=8) if lora else None)
    copies = 0
    if dtype == "bfloat16":  # of the matrices; the estimate has them under `gathered`
        copies = 2 * sum(m.in_features * m.out_features for m in found.linears) // 2
        copies += 2 * num_adapter_parameters(found, train) // 2
    assert saved(3) - saved(2) - copies == saved_by_layer(found, train, 3, 20)


# --- the whole -------------------------------------------------------------------------------------------------------


def estimate(model=QWEN_7B, arm=ARM, on_gpu=True, **train) -> MemoryEstimate:
    return estimate_memory(model, TrainConfig(**train), arm, on_gpu=on_gpu, prompt_tokens=512, device_bytes=80 * GB)


def test_qwen_sizes_are_the_published_ones():
    assert QWEN_7B.num_parameters == pytest.approx(7.62e9, rel=0.001)
    assert QWEN_05B.num_parameters == pytest.approx(0.494e9, rel=0.001)


def test_sixteen_bytes_a_parameter_are_certain():
    found = estimate()
    n = QWEN_7B.num_parameters
    assert (found.weights, found.gradients, found.optimizer) == (4 * n, 4 * n, 8 * n)
    assert found.certain == 16 * n
    assert estimate(optimizer="adamw_8bit").optimizer == 2 * n


def test_a_reference_is_held_for_a_kl_penalty_unless_adapters_can_be_switched_off():
    n = QWEN_7B.num_parameters
    assert estimate().reference == 0
    assert estimate(loss={"kl_beta": 0.01}).reference == 4 * n
    assert estimate(loss={"kl_beta": 0.01}, lora={}).reference == 0
    own = Arm(name="kl", algorithm=GRPO(loss=LossConfig(kl_beta=0.1)))
    assert estimate(arm=own).reference == 4 * n


def test_adapters_leave_weights_alone():
    found, n = estimate(lora={"rank": 16}), QWEN_7B.num_parameters
    # rank x (in + out): q, o 3584 + 3584; k, v 3584 + 512; gate, up, down 3584 + 18944
    adapters = 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22_528)
    assert found.weights == 4 * (n + adapters)
    assert (found.gradients, found.optimizer) == (4 * adapters, 8 * adapters)


def test_fsdp_shards_and_ddp_copies():
    n = QWEN_7B.num_parameters
    sharded = estimate(distributed={"num_processes": 4, "strategy": "fsdp2"})
    copied = estimate(distributed={"num_processes": 4, "strategy": "ddp"})
    assert (sharded.weights, sharded.optimizer, sharded.buffers) == (n, 2 * n, 0)
    assert (copied.weights, copied.buffers) == (4 * n, 4 * n)
    assert sharded.gathered > 0
    assert sharded.activations == copied.activations


def test_key_value_cache_by_hand():
    model = qwen2(8, 2, 16, 2, 1, head_dim=4, vocab=10)
    found = estimate_memory(
        model,
        TrainConfig(prompts_per_step=2, group_size=3, max_completion_tokens=7),
        ARM,
        on_gpu=False,
        prompt_tokens=5,
    )
    cache = 6 * 12 * (2 * 2 * 4) * 4  # rows, tokens, keys and values of 2 layers with one head of 4, float32
    prefill = 6 * 5 * (4 * (2 * 8 + 5 * 16) + 5 * 4)
    assert found.rollouts == cache + cache // 2 + prefill


def test_vllm_takes_its_share_in_turn_or_all_the_time():
    asleep, awake = (estimate(engine={"type": "vllm", "sleep": sleep}) for sleep in (True, False))
    assert asleep.vllm == awake.vllm == 24 * GB
    assert awake.updating - asleep.updating == 24 * GB
    assert awake.generating == asleep.generating
    assert estimate(engine={"type": "vllm", "mode": "server", "server_url": "http://v:8000"}).vllm == 0


def test_evaluation_holds_the_scoring_model_and_its_engine():
    def evaluation(**settings):
        config = EvaluateConfig(max_completion_tokens=512, **settings)
        return estimate_evaluation(QWEN_05B, config, on_gpu=True, prompt_tokens=512, device_bytes=80 * GB)

    n = QWEN_05B.num_parameters
    assert evaluation()["weights"] == 4 * n
    assert evaluation(dtype="bfloat16")["weights"] == 2 * n
    halved = evaluation(batch_size=128)["rollouts"]
    assert evaluation(batch_size=256)["rollouts"] == pytest.approx(2 * halved)
    assert evaluation(engine={"type": "vllm"})["vllm"] == 24 * GB
    assert "rollouts" not in evaluation(engine={"type": "vllm"})


def test_gradients_and_activations_overlap_only_with_micro_batches():
    one, many = estimate(QWEN_05B), estimate(QWEN_05B, micro_batch_size=128)
    assert one.updating - one.activations - one.head == one.weights + one.optimizer + one.gathered + one.runtime
    fixed = many.weights + many.optimizer + many.gathered + many.runtime
    assert many.updating == fixed + many.gradients + many.activations + many.head


def test_parts_are_sorted_and_complete():
    found = estimate(engine={"type": "vllm", "sleep": False}, micro_batch_size=1, gradient_checkpointing=True)
    sizes = list(found.parts.values())
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == found.updating + found.optimizer_step


# --- advice ----------------------------------------------------------------------------------------------------------


def run(model=QWEN_7B, device=80 * GB, on_gpu=True, **train):
    return Run(model, TrainConfig(**train), ARM, on_gpu, 512, device)


def test_what_fits_needs_no_advice():
    fits = {"micro_batch_size": 1, "gradient_checkpointing": True, "engine": VLLMEngineConfig()}
    assert advise(run(QWEN_05B, **fits)) == []


def test_advice_is_the_mildest_value_that_fits():
    small = run(QWEN_05B, engine=VLLMEngineConfig(), dtype="bfloat16")
    (line,) = [line for line in advise(small) if line.startswith("train.micro_batch_size")]
    size = int(line.split()[1])
    assert small.estimate(small.train.model_copy(update={"micro_batch_size": size})).peak <= 80 * GB
    assert small.estimate(small.train.model_copy(update={"micro_batch_size": 2 * size})).peak > 80 * GB
    assert line == f"train.micro_batch_size {size} (now 256): about {line.split('about ')[1]}"


def test_what_does_not_fit_alone_is_advised_together():
    (line,) = advise(run(engine=VLLMEngineConfig(), dtype="bfloat16"))
    assert "together" in line
    assert "num_processes: 2, strategy: fsdp2" in line
    assert "train.max_completion_tokens" not in line  # that would be another experiment


def test_nothing_fits_a_tiny_device():
    (line,) = advise(run(device=GB))
    assert line.startswith("no setting makes it fit")


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.integers(1, 8),
    group=st.integers(2, 8),
    completion=st.integers(1, 4096),
    device=st.integers(2, 200),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    engine=st.sampled_from([{"type": "transformers"}, {"type": "vllm"}, {"type": "vllm", "sleep": False}]),
    lora=st.sampled_from([None, {}]),
)
def test_advice_keeps_its_word(prompts, group, completion, device, dtype, engine, lora):
    """Advice is given exactly when the run does not fit, and its settings are ones that TrainConfig takes."""
    before = run(
        QWEN_05B,
        device=device * GB,
        prompts_per_step=prompts,
        group_size=group,
        max_completion_tokens=completion,
        dtype=dtype,
        engine=engine,
        lora=lora,
    )
    lines = advise(before)
    assert bool(lines) == (before.estimate().peak > device * GB)
    for line in lines:
        assert line.endswith("fits") or line.startswith("no setting makes it fit")


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [("h100-80g", 80 * GB), ("A100-40G", 40 * GB), ("24GB", 24 * GB), ("2GiB", 2**31), ("85899345920", 85899345920)],
)
def test_a_gpu_by_name_or_size(name, size):
    assert gpu_bytes(name) == size


@pytest.mark.parametrize("name", ["h100", "80", "", "-3GB", "nvidia"])
def test_an_unknown_gpu_lists_those_known(name):
    with pytest.raises(ConfigError, match="a100-40g") as caught:
        gpu_bytes(name)
    assert all(gpu in str(caught.value) for gpu in GPUS)


def machine(root, available, groups, limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for path, text in limits.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 8_192_000),
        ("0::/\n", {"memory.max": "max\n"}, 8_192_000),
        ("0::/\n", {"memory.max": "4096000\n"}, 4_096_000),
        ("0::/pod/box\n", {"pod/memory.max": "2048000\n", "pod/box/memory.max": "max\n"}, 2_048_000),
        ("0::/of/the/host\n", {"memory.max": "1024000\n"}, 1_024_000),  # a container's view of its own group
        ("4:memory:/pod\n2:cpu:/pod\n", {"memory/pod/memory.limit_in_bytes": "512000\n"}, 512_000),
        ("4:memory:/pod\n", {"memory/pod/memory.limit_in_bytes": "9223372036854771712\n"}, 8_192_000),
    ],
)
def test_a_host_has_what_is_free_within_its_control_group(tmp_path, groups, limits, expected):
    assert host_bytes(machine(tmp_path, 8000, groups, limits)) == expected


def test_a_host_that_does_not_tell(tmp_path):
    assert host_bytes(tmp_path) is None
