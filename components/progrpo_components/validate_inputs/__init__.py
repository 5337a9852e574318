"""Check every parameter of a run before its work starts."""
