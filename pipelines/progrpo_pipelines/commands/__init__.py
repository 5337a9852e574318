"""Commands of `progrpo`, one a module; heavy imports stay inside the functions."""
