"""Settings that would fail late are refused early."""

import pytest
from pydantic import ValidationError

from progrpo.config import EvaluateConfig, TrainConfig, parse
from progrpo.errors import ConfigError
from progrpo_components.settings import EvaluatePipeline, PlacementConfig


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


@pytest.mark.parametrize(
    "quantity",
    [
        "4",
        "0.5",
        ".5",
        "5.",
        "250m",
        "100n",
        "100u",
        "64k",
        "64M",
        "1.5G",
        "2T",
        "1P",
        "1E",
        "1024Ki",
        "32Gi",
        "1Ei",
        "1e3",
        "12E-1",
    ],
)
def test_a_quantity_of_kubernetes_is_taken(quantity):
    placement = PlacementConfig(cpu=quantity, memory=quantity)
    assert (placement.cpu, placement.memory) == (quantity, quantity)


@pytest.mark.parametrize("quantity", ["", ".", "-1", "1024ki", "1K", "2 GB", "2GB", "1mi", "1e", "0x10", "1.2.3"])
def test_what_kubernetes_would_not_parse_is_refused(quantity):
    """Kubernetes has k and Ki, but neither ki nor K."""
    with pytest.raises(ValidationError, match="pattern"):
        PlacementConfig(memory=quantity)
