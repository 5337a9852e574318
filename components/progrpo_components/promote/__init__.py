"""Register the candidate of a gate, or say why not."""
