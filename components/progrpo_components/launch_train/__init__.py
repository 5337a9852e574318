"""Train one arm with one seed on several nodes."""
