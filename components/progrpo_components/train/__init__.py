"""Train one arm with one seed."""
