"""progrpo: train reasoning LLMs with ProGRPO and prove whether it beat GRPO.

The library knows nothing of Kubeflow or MLflow: steps take a closed configuration and directories, and write
directories with a manifest. Importing it, or :mod:`progrpo.config`, imports neither torch nor transformers.
"""

__version__ = "0.1.0"
