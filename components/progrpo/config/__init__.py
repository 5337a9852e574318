"""Every setting of every step: closed, frozen pydantic models, readable without torch.

The source of each default is named: *paper* (arXiv:2602.05281, as far as docs/paper.md could recover it, or the paper
of the algorithm at hand), *FlowRL* (the paper's public proxy), *TRL* or *ours*. An unknown key is an error that lists
the keys allowed there; see :func:`parse`.
"""

from progrpo.algorithms.base import DynamicSampling, LossConfig, Method, OverlongPenalty, method_of
from progrpo.algorithms.clip_cov import ClipCov
from progrpo.algorithms.dapo import DAPO
from progrpo.algorithms.dr_grpo import DrGRPO
from progrpo.algorithms.entropy_bonus import AdaptiveEntropy, EntropyBonus
from progrpo.algorithms.forking_tokens import ForkingTokens
from progrpo.algorithms.grpo import GRPO
from progrpo.algorithms.gspo import GSPO
from progrpo.algorithms.kl_cov import KLCov
from progrpo.algorithms.passk import PassK
from progrpo.algorithms.progrpo import ProGRPO
from progrpo.algorithms.unlikeliness import Unlikeliness
from progrpo.config.algorithms import Arm
from progrpo.config.data import CheckpointConfig, CountdownSource, DatasetConfig, FileSource
from progrpo.config.engine import Engine, TransformersEngineConfig, VLLMEngineConfig
from progrpo.config.evaluation import AbilityConfig, CompareConfig, EvaluateConfig
from progrpo.config.gate import LOWER_IS_BETTER, Better, GateConfig, GateRule, Keeps, KeepsAbility, NotWorse, Outcome
from progrpo.config.merging import merge
from progrpo.config.reading import parse
from progrpo.config.training import CheckpointingConfig, DistributedConfig, HeldoutConfig, LoRAConfig, TrainConfig
from progrpo.settings import ARM_NAME, MAX_SEED, MIN_TEMPERATURE, START, Config

__all__ = [
    "ARM_NAME",
    "DAPO",
    "GRPO",
    "GSPO",
    "LOWER_IS_BETTER",
    "MAX_SEED",
    "MIN_TEMPERATURE",
    "START",
    "AbilityConfig",
    "AdaptiveEntropy",
    "Arm",
    "Better",
    "CheckpointConfig",
    "CheckpointingConfig",
    "ClipCov",
    "CompareConfig",
    "Config",
    "CountdownSource",
    "DatasetConfig",
    "DistributedConfig",
    "DrGRPO",
    "DynamicSampling",
    "Engine",
    "EntropyBonus",
    "EvaluateConfig",
    "FileSource",
    "ForkingTokens",
    "GateConfig",
    "GateRule",
    "HeldoutConfig",
    "KLCov",
    "Keeps",
    "KeepsAbility",
    "LoRAConfig",
    "LossConfig",
    "Method",
    "NotWorse",
    "Outcome",
    "OverlongPenalty",
    "PassK",
    "ProGRPO",
    "TrainConfig",
    "TransformersEngineConfig",
    "Unlikeliness",
    "VLLMEngineConfig",
    "merge",
    "method_of",
    "parse",
]
