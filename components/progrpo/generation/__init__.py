"""Sample completions and score their tokens, behind an interface free of any engine's types."""
