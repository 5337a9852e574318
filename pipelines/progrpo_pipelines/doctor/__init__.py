"""What ``progrpo doctor`` looks at: is everything there that a run needs, and may we use it."""
