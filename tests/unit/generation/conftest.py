import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A random Llama of 19 symbols; 0 pads, 1 ends. Sharpened, so that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=19,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()
