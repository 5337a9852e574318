"""What a run would take."""
