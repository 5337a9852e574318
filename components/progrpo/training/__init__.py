"""Training: :func:`progrpo.training.train.train` on TRL's engine, behind the seam of ``trainer.py``."""
