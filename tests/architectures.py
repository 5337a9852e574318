"""Sizes of models, for estimates without their weights."""

from progrpo.checkpoints.architecture import Architecture, Linear


def qwen2(hidden, layers, mlp, heads, kv_heads, *, head_dim=128, vocab=152_064, tied=False):
    """A Qwen2 model of these sizes; biases are left out."""
    query, kv = heads * head_dim, kv_heads * head_dim
    attention = {"q_proj": (hidden, query), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (query, hidden)}
    matrices = {f"self_attn.{name}": size for name, size in attention.items()}
    matrices |= {"mlp.gate_proj": (hidden, mlp), "mlp.up_proj": (hidden, mlp), "mlp.down_proj": (mlp, hidden)}
    layer = sum(inputs * outputs for inputs, outputs in matrices.values()) + 2 * hidden
    root = vocab * hidden * (1 if tied else 2) + hidden
    return Architecture(
        name="Qwen2ForCausalLM",
        num_parameters=layers * layer + root,
        layer_parameters=layer,
        root_parameters=root,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        vocab_size=vocab,
        qk_norm=False,
        linears=tuple(
            Linear(f"model.layers.{i}.{name}", *size) for i in range(layers) for name, size in matrices.items()
        ),
        context_length=32_768,
    )


QWEN_7B = qwen2(3584, 28, 18_944, 28, 4)
QWEN_05B = qwen2(896, 24, 4864, 14, 2, head_dim=64, vocab=151_936, tied=True)
