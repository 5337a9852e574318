"""Arms against each other: statistics, refusals, the report."""
