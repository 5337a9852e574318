"""Settings that would fail late are refused early."""

import pytest

from progrpo.config import EvaluateConfig, EvaluatePipeline, TrainConfig, parse
from progrpo.errors import ConfigError


def test_no_k_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"^evaluation: ks: .* at least 1 item"):
        parse(EvaluateConfig, {"ks": []}, source="evaluation")


@pytest.mark.parametrize("model", [TrainConfig, EvaluateConfig])
@pytest.mark.parametrize(("key", "value"), [("temperature", 1e-45), ("num_threads", 2**40)])
def test_numbers_that_torch_fails_on_are_refused(model, key, value):
    with pytest.raises(ConfigError, match=rf"^settings: {key}: .*Given: "):
        parse(model, {key: value}, source="settings")


def test_the_tag_of_a_union_is_no_part_of_the_key():
    with pytest.raises(ConfigError, match=r"^preset: dataset\.source\.num_eval: .*Given: 0"):
        parse(EvaluatePipeline, {"dataset": {"source": {"type": "countdown", "num_eval": 0}}}, source="preset")
