"""Checkpoints: Hugging Face directories with a manifest, safetensors only."""
