import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from progrpo.checkpoints import importer
from progrpo.checkpoints.importer import import_checkpoint, write_checkpoint
from progrpo.checkpoints.preflight import WEIGHTS_INDEX, checkpoint_metadata, first_line
from progrpo.config import CheckpointConfig
from progrpo.errors import CheckpointError, ManifestError, StorageError
from progrpo.manifest import MANIFEST_NAME, read_manifest
from progrpo.storage import localize


@pytest.fixture
def source(tmp_path):
    """A Hugging Face directory that is no artifact yet."""
    directory = tmp_path / "source"
    shutil.copytree(localize("embedded://countdown-sft", tmp_path), directory)
    (directory / MANIFEST_NAME).unlink()
    return directory


def run(source, tmp_path, **settings):
    output = tmp_path / "out" / "checkpoint"
    return output, import_checkpoint(CheckpointConfig(uri=str(source), **settings), output)


def refused(source, tmp_path, *texts, error=CheckpointError, **settings):
    with pytest.raises(error) as caught:
        run(source, tmp_path, **settings)
    for text in texts:
        assert text in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(source):
    """Split the weights into two files with an index, as large models have them."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate([names[:10], names[10:]], start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (source / WEIGHTS_INDEX).write_text(json.dumps(index))
    return tensors


def test_embedded_checkpoint(tmp_path):
    output, manifest = run("embedded://countdown-sft", tmp_path)
    assert {key: manifest.metadata[key] for key in ("source_uri", "architecture", "num_parameters", "dtype")} == {
        "source_uri": "embedded://countdown-sft",
        "architecture": "LlamaForCausalLM",
        "num_parameters": 661_632,
        "dtype": "float32",
    }
    assert (manifest.metadata["eos_token"], manifest.metadata["pad_token"]) == ("<eos>", "<pad>")
    assert manifest.metadata["context_length"] == 128
    assert read_manifest(output, "checkpoint") == manifest
    assert sum(entry.size for entry in manifest.files.values()) < 4 << 20


def test_only_known_files_are_copied(source, tmp_path):
    for name in ("modeling_evil.py", "pytorch_model.bin", "README.md", "training_args.bin"):
        (source / name).write_text("x")
    output, _ = run(source, tmp_path)
    assert sorted(path.name for path in output.iterdir()) == [
        *("chat_template.jinja", "config.json", "generation_config.json", "manifest.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]


def test_dtype_conversion(source, tmp_path):
    output, manifest = run(source, tmp_path, dtype="bfloat16")
    assert manifest.metadata["dtype"] == "bfloat16"
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    before, after = (load_file(directory / "model.safetensors") for directory in (source, output))
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)


def test_shards_are_copied_and_converted(source, tmp_path):
    tensors = shard(source)
    output, manifest = run(source, tmp_path, dtype="bfloat16")
    assert manifest.metadata["num_parameters"] == 661_632
    total = json.loads((output / WEIGHTS_INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.numel() for tensor in tensors.values()) * 2
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16)
    assert torch.equal(model.state_dict()["lm_head.weight"], tensors["lm_head.weight"].bfloat16())


def test_missing_shard(source, tmp_path):
    shard(source)
    (source / "model-00002-of-00002.safetensors").unlink()
    refused(source, tmp_path, "lists 2 files, but these are missing: model-00002-of-00002.safetensors")


def test_shard_lacks_a_tensor(source, tmp_path):
    shard(source)
    path = source / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[1:]), path)
    refused(source, tmp_path, "(1 such tensors)", "Copy the checkpoint again")


def test_shard_outside_the_directory(source, tmp_path):
    shard(source)
    index = json.loads((source / WEIGHTS_INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    (source / WEIGHTS_INDEX).write_text(json.dumps(index))
    (tmp_path / "other.safetensors").write_bytes(b"")
    refused(source, tmp_path, "these are missing: ../other.safetensors")


@pytest.mark.parametrize("size", [0, 5, 100, 2_000_000])
def test_cut_off_weights(source, tmp_path, size):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(source, tmp_path, "model.safetensors is cut off or not a safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights(source, tmp_path, name):
    (source / "model.safetensors").rename(source / name)
    refused(source, tmp_path, name, "only safetensors is read", "save_pretrained")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code(source, tmp_path, name):
    edit(source / name, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    refused(source, tmp_path, name, "auto_map", "never done")


def test_no_tokenizer(source, tmp_path):
    (source / "tokenizer.json").unlink()
    refused(source, tmp_path, f"{source} has no tokenizer", "tokenizer.save_pretrained")  # not the copy that is gone


def test_broken_tokenizer(source, tmp_path):
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    refused(source, tmp_path, "the tokenizer cannot be loaded")


def test_chat_template(source, tmp_path):
    (source / "chat_template.jinja").unlink()
    refused(source, tmp_path, "no chat template", "Put a chat_template.jinja")
    _, manifest = run(source, tmp_path, require_chat_template=False)
    assert manifest.metadata["chat_template_digest"] is None


def test_tokenizer_of_another_model(source, tmp_path):
    edit(source / "config.json", vocab_size=50)
    refused(source, tmp_path, "token id 84, but the model has 50 embeddings")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architectures": None}, "names no architecture"),
        ({"architectures": ["BertForMaskedLM"]}, "a causal language model"),
        ({"model_type": "unheard-of"}, "model_type 'unheard-of'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized"),
    ],
)
def test_unusable_configuration(source, tmp_path, changes, text):
    edit(source / "config.json", **changes)
    refused(source, tmp_path, text)


def test_an_error_without_words_is_named_by_its_type():
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("\none\ntwo")) == "one"


def test_missing_or_broken_configuration(source, tmp_path):
    (source / "config.json").write_text("{")
    refused(source, tmp_path, "config.json is not valid JSON")
    (source / "config.json").unlink()
    refused(source, tmp_path, "has no config.json")


def test_a_file_instead_of_a_directory(source, tmp_path):
    refused(source / "model.safetensors", tmp_path, "is a file")


def test_changed_artifact(source, tmp_path):
    shutil.rmtree(source)
    shutil.copytree(localize("embedded://countdown-sft", tmp_path), source)
    edit(source / "generation_config.json", top_k=3)
    refused(source, tmp_path, "differs from its manifest", error=ManifestError)


def test_output_must_be_empty(source, tmp_path):
    run(source, tmp_path)
    with pytest.raises(StorageError, match="not empty"):
        run(source, tmp_path)


def test_unknown_place(tmp_path):
    refused("embedded://nope", tmp_path, "Embedded: countdown-sft", error=StorageError)


def test_write_checkpoint_keeps_weights_and_digests(embedded_checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint, padding_side="left")
    manifest = write_checkpoint(model, tokenizer, tmp_path / "a", source="test", inputs={"dataset": "0" * 64})
    start = checkpoint_metadata(embedded_checkpoint, source="test")
    assert manifest.metadata == start
    assert manifest.inputs == {"dataset": "0" * 64}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_chat_template_round_trip(embedded_checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint)
    user = {"role": "user", "content": "use the numbers 3 5 7 to make 22 :"}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(
        [user, {"role": "assistant", "content": "(3*5)+7"}], add_generation_prompt=False, return_dict=False
    )
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id
    assert len(whole) - len(prompt) == 8
    assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True) == "( 3 * 5 ) + 7"
    assert tokenizer.unk_token_id not in whole


def test_gguf_needs_its_package(source, tmp_path, monkeypatch):
    (source / "model.safetensors").unlink()
    (source / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importer.util, "find_spec", lambda name: None)
    refused(source, tmp_path, "is GGUF, which needs gguf and torch.", "progrpo[train,smollm2]")


def test_broken_or_ambiguous_gguf(source, tmp_path):
    (source / "model.safetensors").unlink()
    (source / "model.gguf").write_bytes(b"GGUF")
    refused(source, tmp_path, "cannot read this GGUF file")
    (source / "other.gguf").write_bytes(b"GGUF")
    refused(source, tmp_path, "2 GGUF files: model.gguf, other.gguf")


def test_gguf_is_dequantized_with_its_special_tokens(tmp_path):
    path = tmp_path / "tiny.gguf"
    tensors = write_gguf(path)
    output, manifest = run(path, tmp_path)
    assert manifest.metadata["architecture"] == "LlamaForCausalLM"
    assert manifest.metadata["dtype"] == "float32"
    assert (manifest.metadata["eos_token"], manifest.metadata["pad_token"]) == ("<|end|>", "<|pad|>")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output)
    assert set(tokenizer("ab")) == {"input_ids", "attention_mask"}
    assert tokenizer("abab", add_special_tokens=False)["input_ids"] == [6, 6]
    assert not tokenizer.clean_up_tokenization_spaces
    weights = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert torch.equal(weights["model.embed_tokens.weight"], torch.from_numpy(tensors["token_embd.weight"]))


def write_gguf(path):
    """Write a Llama of one layer with a byte-pair tokenizer, as converters of language models do."""
    import gguf
    import numpy as np

    tokens = ["<|unk|>", "<|begin|>", "<|end|>", "<|pad|>", "a", "b", "ab", "aba"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "ab a"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {
        "token_embd.weight": (8, 16),
        "output_norm.weight": (16,),
        "output.weight": (8, 16),
        "blk.0.attn_norm.weight": (16,),
        "blk.0.attn_q.weight": (16, 16),
        "blk.0.attn_k.weight": (16, 16),
        "blk.0.attn_v.weight": (16, 16),
        "blk.0.attn_output.weight": (16, 16),
        "blk.0.ffn_norm.weight": (16,),
        "blk.0.ffn_gate.weight": (32, 16),
        "blk.0.ffn_up.weight": (32, 16),
        "blk.0.ffn_down.weight": (16, 32),
    }
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
