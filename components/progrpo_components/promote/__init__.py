"""Compare arms, paired by problem and over seeds."""
