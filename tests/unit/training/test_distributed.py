"""DDP and FSDP2 on two gloo ranks: equal losses, one form of state, and a run that goes on to the same bits."""

import json
import subprocess
from pathlib import Path

import pytest

from progrpo.config import TrainConfig
from progrpo.errors import ConfigError
from progrpo.training.distributed import check_world_size, strategy_arguments

SCRIPT = Path(__file__).with_name("state_ranks.py")
VARIANTS = ("ddp", "fsdp2", "fsdp2-tied", "fsdp2-lora", "fsdp2-recompute")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(python, launcher, checkpoint, output, variants):
    output.mkdir()
    command = [python, *launcher, SCRIPT, checkpoint, output, *variants]
    subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    return [json.loads(path.read_text()) for path in sorted(output.glob("rank_*.json"))]


@pytest.fixture(scope="module")
def two_ranks(python, embedded_checkpoint, tmp_path_factory):
    return run(python, TORCHRUN, embedded_checkpoint, tmp_path_factory.mktemp("ranks") / "two", VARIANTS)


@pytest.fixture(scope="module")
def one_rank(python, embedded_checkpoint, tmp_path_factory):
    variants = ("ddp", "ddp-tied", "ddp-lora")
    return run(python, (), embedded_checkpoint, tmp_path_factory.mktemp("ranks") / "one", variants)[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_go_on_to_the_same_bits(two_ranks, name):
    first = two_ranks[0][name]
    assert first["moved"], "a state that nothing changed would be equal whatever is restored"
    assert first["equal"]
    assert first["resumed_losses"] == first["losses"][3:]


@pytest.mark.parametrize("name", ["ddp", "ddp-tied", "ddp-lora"])
def test_one_rank_goes_on_to_the_same_bits(one_rank, name):
    first = one_rank[name]
    assert first["moved"]
    assert first["equal"]
    assert first["resumed_losses"] == first["losses"][3:]


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("ddp", "ddp"),
        ("fsdp2", "ddp"),
        ("fsdp2-recompute", "ddp"),
        ("fsdp2-tied", "ddp-tied"),
        ("fsdp2-lora", "ddp-lora"),
    ],
)
def test_two_ranks_train_as_one_does(two_ranks, one_rank, name, alone):
    assert two_ranks[0][name]["losses"] == pytest.approx(one_rank[alone]["losses"], rel=1e-5)


def test_a_state_is_of_one_form_for_one_rank_ddp_and_fsdp2(two_ranks, one_rank):
    form = ("weights", "trained", "optimized", "shapes", "state_keys", "updates", "weight_decay", "schedule")
    alone = {key: one_rank["ddp"][key] for key in form}
    assert alone["shapes"]["lm_head.weight"] == [85, 128]
    assert alone["state_keys"] == ["exp_avg", "exp_avg_sq", "step"]
    assert alone["updates"] == alone["schedule"]["last_epoch"] == 6
    for name in ("ddp", "fsdp2"):
        assert {key: two_ranks[0][name][key] for key in form} == alone


def test_fsdp2_goes_on_from_a_state_of_ddp(two_ranks):
    assert two_ranks[0]["fsdp2"]["losses_from_other"] == pytest.approx(two_ranks[0]["ddp"]["losses"][3:], rel=1e-5)


def test_only_the_first_rank_holds_a_state(two_ranks):
    for found in two_ranks[1].values():
        assert found["weights"] == found["trained"] == found["optimized"] == []


def test_parameters_are_sharded_on_a_cpu(two_ranks):
    assert two_ranks[0]["ddp"]["wrapper"] == "DistributedDataParallel"
    assert two_ranks[0]["fsdp2"]["wrapper"].startswith("FSDP")


def test_lora_keeps_the_adapters_alone(two_ranks):
    found = two_ranks[0]["fsdp2-lora"]
    assert all("lora_" in name for name in found["trained"])
    assert found["trained"] == found["optimized"]
    assert set(found["trained"]) < set(found["weights"])


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2-recompute"])
def test_ranks_sample_for_unequal_lengths(two_ranks, name):
    assert all(found[name]["samples_agree"] for found in two_ranks)


def test_the_number_of_ranks_is_checked(monkeypatch):
    config = TrainConfig(distributed={"num_processes": 4})
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_world_size(config)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match=r"num_processes is 4, .* of 1\. Start 4 with torchrun"):
        check_world_size(config)
    monkeypatch.delenv("WORLD_SIZE")
    check_world_size(TrainConfig())


def test_one_rank_is_not_sharded():
    assert strategy_arguments(TrainConfig(distributed={"strategy": "fsdp2"})) == {"gradient_checkpointing": False}
