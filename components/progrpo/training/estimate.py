"""How much memory a training run takes on each rank, before it is started; torch is not needed.

Phases alternate, and the largest one decides: rollouts are generated, the policy is updated from them. What
is held in all (weights, optimizer) is exact. What autograd saves is counted from the layers of transformers' Llama
and Qwen models with SDPA attention, in the manner of Korthikanti et al. (arXiv:2205.05198, section 4), whose formula is
for GPT layers with dropout. tests/unit/training/test_estimate.py compares it with the tensors that are really saved.

Against the memory that training takes on a CPU the whole was between 8 % too low and 5 % too high in nine cases of 0.7M
to 52M parameters (docs/planning.md). On a GPU nothing of it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from progrpo.checkpoints.architecture import Architecture
from progrpo.config import Arm, EvaluateConfig, TrainConfig, TransformersEngineConfig, VLLMEngineConfig, method_of

FLOAT64, FLOAT32, BFLOAT16 = 8, 4, 2
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""Of a trained parameter: AdamW keeps two moments, each in float32 or in 8 bits."""
TILE_TOKENS, TILE_VOCAB = 4096, 32768  # of TRL 1.16's fused LM head: trl/kernels/chunked_logprob.py, trainer/utils.py
CPU_TILE_COPIES = 7  # temporaries of its backward in plain torch; one Triton kernel on a GPU needs none
RUNTIME_CPU = 700_000_000
"""Python with torch, transformers and TRL imported; measured."""
RUNTIME_GPU = 1_000_000_000
"""CUDA context and libraries; an assumption."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, by part.

    Attributes:
        weights: float32 masters, with adapters; a shard of them under FSDP2.
        gradients: float32, of what is trained.
        optimizer: the moments of AdamW.
        reference: the copy of the start checkpoint that a KL penalty needs.
        gathered: weights in the form they are computed with: bfloat16 copies, under FSDP2 the layers gathered.
        buffers: DDP's buckets.
        activations: what autograd saves of a micro-batch, and the gradients of one layer's activations.
        head: tiles of logits, gradients of the hidden states and of the LM head.
        rollouts: KV cache, prefill and logits of transformers' generation.
        vllm: the share of the device that vLLM takes in colocate mode.
        optimizer_step: torch's AdamW on a GPU works on all parameters at once, and needs another tensor of each.
        runtime: the process or CUDA context itself.
        num_micro_batches: of a step. With one, gradients appear as activations go.
        num_layers: of the model.
        vllm_sleeps: vLLM gives its memory back for the update.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    gathered: int
    buffers: int
    activations: int
    head: int
    rollouts: int
    vllm: int
    optimizer_step: int
    runtime: int
    num_micro_batches: int
    num_layers: int
    vllm_sleeps: bool

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by part, largest first, without those that are 0."""
        names = ("weights", "gradients", "optimizer", "reference", "gathered", "buffers", "activations", "head")
        parts = {name: getattr(self, name) for name in (*names, "rollouts", "vllm", "optimizer_step", "runtime")}
        return dict(sorted(((name, size) for name, size in parts.items() if size), key=lambda part: -part[1]))

    @property
    def certain(self) -> int:
        """What no setting of the batch changes: weights, gradients, optimizer, reference."""
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def generating(self) -> int:
        """Peak while rollouts are generated."""
        return self._held + self.gathered + self.rollouts + (self.vllm if self.vllm_sleeps else 0)

    @property
    def updating(self) -> int:
        """Peak of forward and backward pass."""
        passes = self.activations + self.head
        if self.num_micro_batches > 1:
            return self._held + self.gathered + self.gradients + passes
        return self._held + self.gathered + max(passes, self.gradients + self.activations // self.num_layers)

    @property
    def stepping(self) -> int:
        """Peak of the optimizer's step."""
        return self._held + self.gradients + self.optimizer_step

    @property
    def peak(self) -> int:
        """The largest of the three."""
        return max(self.generating, self.updating, self.stepping)

    @property
    def _held(self) -> int:
        asleep = 0 if self.vllm_sleeps else self.vllm
        return self.weights + self.optimizer + self.reference + self.buffers + self.runtime + asleep


def estimate_memory(
    model: Architecture,
    train: TrainConfig,
    arm: Arm,
    *,
    on_gpu: bool,
    prompt_tokens: int | None = None,
    device_bytes: int | None = None,
) -> MemoryEstimate:
    """Estimate what a training run takes on each rank.

    Args:
        model: read from the checkpoint.
        train: the settings.
        arm: its loss may have a KL penalty.
        on_gpu: the LM head is fused there; a CPU has temporaries for its tiles.
        prompt_tokens: of the longest prompt; None: ``max_prompt_tokens``.
        device_bytes: memory of the device, of which vLLM takes its share; None: vLLM is left out.

    Returns:
        The estimate; completions are as long as ``max_completion_tokens``.
    """
    prompt = prompt_tokens or train.max_prompt_tokens
    rows = train.micro_batch_size or train.rows_per_rank
    ranks, sharded = train.distributed.num_processes, train.distributed.strategy == "fsdp2"
    shards = ranks if sharded else 1
    adapters = num_adapter_parameters(model, train)
    trained = adapters if train.lora else model.num_parameters
    needs_reference = method_of(arm.algorithm, train).loss.kl_beta > 0 and train.lora is None
    tokens = rows * (prompt + train.max_completion_tokens)
    vllm = 0
    if isinstance(train.engine, VLLMEngineConfig) and train.engine.mode == "colocate" and device_bytes:
        vllm = int(train.engine.memory_frac * device_bytes)
    return MemoryEstimate(
        weights=FLOAT32 * (model.num_parameters + adapters) // shards,
        gradients=FLOAT32 * trained // shards,
        optimizer=OPTIMIZER_BYTES[train.optimizer] * trained // shards,
        reference=FLOAT32 * model.num_parameters // shards if needs_reference else 0,
        gathered=_gathered(model, train),
        buffers=FLOAT32 * trained if ranks > 1 and not sharded else 0,
        activations=_activations(model, train, rows, prompt + train.max_completion_tokens),
        head=_head(model, train, tokens, on_gpu),
        rollouts=_rollouts(model, train, prompt),
        vllm=vllm,
        optimizer_step=FLOAT32 * trained // shards if on_gpu and train.optimizer == "adamw" else 0,
        runtime=RUNTIME_GPU if on_gpu else RUNTIME_CPU,
        num_micro_batches=train.rows_per_rank // rows,
        num_layers=model.num_layers,
        vllm_sleeps=isinstance(train.engine, VLLMEngineConfig) and train.engine.sleep,
    )


def estimate_evaluation(
    model: Architecture,
    evaluation: EvaluateConfig,
    *,
    on_gpu: bool,
    prompt_tokens: int,
    device_bytes: int | None = None,
) -> dict[str, int]:
    """Estimate what the evaluate step takes, bytes by part: the model that scores, and what its engine samples with."""
    size = BFLOAT16 if evaluation.dtype == "bfloat16" else FLOAT32
    parts = {"weights": size * model.num_parameters, "runtime": RUNTIME_GPU if on_gpu else RUNTIME_CPU}
    if isinstance(evaluation.engine, VLLMEngineConfig):
        share = evaluation.engine.memory_frac if evaluation.engine.mode == "colocate" else 0.0
        return parts | {"vllm": int(share * (device_bytes or 0))}
    generation = _generation(
        model,
        evaluation.batch_size,
        prompt_tokens,
        evaluation.max_completion_tokens,
        evaluation.dtype,
        cuts_nucleus=evaluation.top_p < 1,
    )
    return parts | {"rollouts": generation}


def num_adapter_parameters(model: Architecture, train: TrainConfig) -> int:
    """Count the parameters of the low-rank adapters: rank x (in + out) for each matrix that gets one."""
    if train.lora is None:
        return 0
    adapted = model.adapted(train.lora.target_modules)
    return sum(train.lora.rank * (linear.in_features + linear.out_features) for linear in adapted)


def saved_by_layer(model: Architecture, train: TrainConfig, rows: int, length: int) -> int:
    """Bytes that autograd saves of one decoder layer for ``rows`` sequences of ``length`` tokens.

    Of a token: both norms keep their input and, if their weight is trained, the normalised input, in float32; the
    linear layers their inputs (in bfloat16 autocast casts it for each of them anew); attention q, k, v and its output,
    with k and v repeated to all heads; the MLP gate, up, activation and product; an adapter its low-rank product. Of a
    sequence: the padding mask, which SDPA turns into ``length`` squared numbers in every layer.
    """
    hidden, query, mlp = model.hidden_size, model.query_size, model.intermediate_size
    size = BFLOAT16 if train.dtype == "bfloat16" else FLOAT32
    trains_norms = train.lora is None
    token = FLOAT32 * 2 * hidden * (2 if trains_norms else 1)
    token += size * (hidden * (5 if size == BFLOAT16 else 2) + 4 * query + 4 * mlp)
    token += FLOAT32 * (model.num_heads + 2)  # logsumexp of attention, the norms' scales
    if model.qk_norm:
        token += (FLOAT32 + (size if trains_norms else 0)) * (query + model.key_value_size)
        token += FLOAT32 * (model.num_heads + model.num_kv_heads)
    if train.lora is not None:
        adapted = len(model.adapted(train.lora.target_modules)) / model.num_layers
        token += int(size * adapted * train.lora.rank)
        token += BFLOAT16 * query if size == BFLOAT16 else 0
    return rows * length * token + rows * length**2 * size


def _activations(model: Architecture, train: TrainConfig, rows: int, length: int) -> int:
    size = BFLOAT16 if train.dtype == "bfloat16" else FLOAT32
    layer = saved_by_layer(model, train, rows, length)
    in_backward = rows * length * size * (2 * model.hidden_size + 3 * model.intermediate_size)
    ends = rows * length * FLOAT32 * 3 * model.hidden_size  # around the final norm, and the head's input
    if train.gradient_checkpointing:  # each layer keeps its input; one at a time is computed again
        return model.num_layers * rows * length * FLOAT32 * model.hidden_size + layer + in_backward + ends
    return model.num_layers * layer + in_backward + ends


def _head(model: Architecture, train: TrainConfig, tokens: int, on_gpu: bool) -> int:
    size = BFLOAT16 if train.dtype == "bfloat16" else FLOAT32
    width = TILE_VOCAB if on_gpu else min(model.vocab_size, TILE_VOCAB)  # pages that a CPU never touches cost nothing
    tile = min(tokens, TILE_TOKENS) * width
    gradients = FLOAT32 * model.hidden_size * (tokens + (0 if train.lora else model.vocab_size))
    return tile * size + gradients + (0 if on_gpu else tile * FLOAT32 * CPU_TILE_COPIES)


def _gathered(model: Architecture, train: TrainConfig) -> int:
    size = BFLOAT16 if train.dtype == "bfloat16" else FLOAT32
    if train.distributed.strategy == "fsdp2" and train.distributed.num_processes > 1:
        # The layer at work and the next, one layer's gradients, and all that belongs to no layer.
        head = FLOAT32 * model.vocab_size * model.hidden_size  # TRL gathers it once more, in float32
        return size * (model.root_parameters + 2 * model.layer_parameters) + FLOAT32 * model.layer_parameters + head
    if train.dtype == "float32":
        return 0
    if train.lora is not None and train.gradient_checkpointing:  # copies of frozen weights live as long as their layer
        return BFLOAT16 * (model.layer_parameters + model.root_parameters)
    return BFLOAT16 * model.num_parameters


def _rollouts(model: Architecture, train: TrainConfig, prompt: int) -> int:
    if not isinstance(train.engine, TransformersEngineConfig):
        return 0
    rows = train.rows_per_rank * train.updates_per_rollout
    rows = min(rows, train.engine.batch_size or rows)
    return _generation(model, rows, prompt, train.max_completion_tokens, train.dtype)


def _generation(
    model: Architecture, rows: int, prompt: int, completion: int, dtype: str, *, cuts_nucleus: bool = False
) -> int:
    """Bytes of transformers' ``generate`` beside the weights, drawing as :func:`progrpo.generation.keyed.draw` does."""
    size = BFLOAT16 if dtype == "bfloat16" else FLOAT32
    cache = rows * (prompt + completion) * 2 * model.num_layers * model.key_value_size * size
    # At least three MLP tensors live at once; five is what benchmarks/memory.py found on a CPU.
    prefill = rows * prompt * (size * (2 * model.hidden_size + 5 * model.intermediate_size) + prompt * size)
    # The last token's logits and a copy, log-probabilities; mass and cumulated mass in float64; to cut, both sorted.
    logits = rows * model.vocab_size * (3 * FLOAT32 + 2 * FLOAT64 + (4 * FLOAT64 if cuts_nucleus else 0))
    return cache + cache // model.num_layers + max(prefill, logits)  # a layer's cache is copied as it grows
