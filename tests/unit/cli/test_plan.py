"""progrpo plan: a run is looked at, not started; through the command line, on the embedded checkpoint."""

import json

import pytest

from progrpo.checkpoints.architecture import read_architecture
from progrpo.config import GRPO, Arm, TrainConfig
from progrpo.training.estimate import estimate_memory
from progrpo_pipelines.cli import main
from progrpo_pipelines.planning.plan import training_work
from s3 import s3_server  # noqa: F401 - a fixture

FAST = ["--no-dataset"]
SMOKE = ["plan", "compare", "--preset", "smoke"]


def run_plan(arguments, capsys):
    code = 0
    try:
        main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return code or 0, captured.out, captured.err


def plan_json(arguments, capsys):
    code, out, _ = run_plan([*arguments, "--json"], capsys)
    return code, json.loads(out)


def test_the_smoke_preset_fits_and_counts(capsys):
    code, plan = plan_json(SMOKE, capsys)
    assert (code, plan["errors"], plan["warnings"], plan["notes"]) == (0, [], [], [])
    assert plan["checkpoint"] == {
        "architecture": "LlamaForCausalLM",
        "num_parameters": 661_632,
        "context_length": 128,
    }
    # 2 arms x 2 seeds; 16 prompts x 16; 150 steps; 256 held-out problems x 32 samples x (4 runs and the start)
    assert plan["num_runs"] == 4
    assert (plan["training"]["rollouts_per_step"], plan["training"]["rollouts"]) == (256, 150 * 256)
    assert plan["evaluation_completions"] == 256 * 32 * 5
    # prompts have 13 or 14 tokens or so, a completion at most 8
    assert 20 < plan["training"]["tokens_per_step"] / 256 < 24
    memory = plan["memory_bytes"]
    assert memory["grpo"] == memory["progrpo"]
    assert memory["grpo"]["parts"]["weights"] == 4 * 661_632
    assert memory["grpo"]["parts"]["optimizer"] == 8 * 661_632
    assert plan["written"][0] == {"what": "checkpoint/, float32", "count": 1, "bytes": 4 * 661_632}
    assert plan["written"][1]["count"] == 16  # steps 1, 10, 20, ..., 150
    assert plan["gpu_hours"] is None


def test_the_table_names_parts_work_and_device(capsys):
    code, out, _ = run_plan([*SMOKE, *FAST], capsys)
    assert code == 0
    for words in ("0.7M parameters", "optimizer", "grpo, progrpo", "rollouts a step", "free memory of this machine"):
        assert words in out
    assert "GPU-hours" not in out  # no throughput was given


def test_a_kl_penalty_of_one_arm_is_its_own_column(capsys):
    _, plan = plan_json([*SMOKE, *FAST, "--set", "arms.0.algorithm.loss={kl_beta: 0.1}"], capsys)
    memory = plan["memory_bytes"]
    assert memory["grpo"]["parts"]["reference"] == 4 * 661_632
    assert "reference" not in memory["progrpo"]["parts"]


def test_gpu_hours_come_from_the_throughput_given(capsys):
    _, plan = plan_json([*SMOKE, *FAST, "--tokens-per-second", "1000"], capsys)
    # 4 runs x 38,400 rollouts x (64 prompt + 8 completion tokens)
    assert plan["gpu_hours"] == pytest.approx(4 * 38_400 * 72 / 1000 / 3600)


def test_what_cannot_work_exits_with_2_and_all_problems(capsys):
    settings = [
        "train.prompts_per_step=4096",
        "train.lora={target_modules: [qproj]}",
        "train.max_prompt_tokens=3",
        "arms.0.algorithm={type: passk, k: 99}",
        "evaluation.max_completion_tokens=500",
    ]
    code, plan = plan_json([*SMOKE, *(word for setting in settings for word in ("--set", setting))], capsys)
    assert code == 2
    text = "\n".join(plan["errors"])
    for words in ("prompts_per_step is 4096", "'qproj' matches no linear layer", "k = 99", "max_completion_tokens"):
        assert words in text
    assert len(plan["errors"]) == 4  # of prompts that do not fit, one is told at a time


def test_errors_and_warnings_are_shown_in_the_table(capsys):
    arguments = [*SMOKE, *FAST, "--set", "arms.0.algorithm={type: kl_cov}", "--set", "train.prompts_per_step=4096"]
    code, out, _ = run_plan(arguments, capsys)
    assert code == 2
    assert "Warning:    arm grpo: with one update" in out
    assert "Error:      the training split holds 2048 problems" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "compar"], "Did you mean 'compare'?"),
        ([*SMOKE, "--gpu", "h100-80g"], "but the device is set to cpu"),
        ([*SMOKE, "--set", "train.device=auto", "--gpu", "h1000"], "unknown GPU 'h1000'. Give a10,"),
        ([*SMOKE, "--set", "train.stepss=1"], "Did you mean 'steps'?"),
    ],
)
def test_a_mistake_is_one_message(arguments, words, capsys):
    code, _, message = run_plan(arguments, capsys)
    assert code == 2
    assert message.startswith("error: ")
    assert words in message


def test_a_checkpoint_that_is_not_there_is_an_error_and_the_rest_is_planned(capsys):
    code, plan = plan_json([*SMOKE, *FAST, "--set", "checkpoint.uri=/absent"], capsys)
    assert code == 2
    assert "checkpoint.uri: '/absent' does not exist" in plan["errors"][0]
    assert plan["checkpoint"] is None
    assert plan["training"]["rollouts"] == 38_400


def test_s3_that_cannot_be_read_leaves_the_settings(capsys, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    source = "dataset.source={type: file, train_uri: s3://data/train.jsonl}"
    code, plan = plan_json([*SMOKE, "--set", "checkpoint.uri=s3://models/x", "--set", source], capsys)
    assert code == 0
    assert any("only settings were checked" in note and "127.0.0.1:9" in note for note in plan["notes"])
    assert any("lies in S3 and was not read" in note for note in plan["notes"])
    assert "very-secret" not in json.dumps(plan)
    assert plan["memory_bytes"] == {}


def test_a_checkpoint_in_s3_is_planned_with(capsys, monkeypatch, s3_server, embedded_checkpoint):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    client.create_bucket(Bucket="planned")
    for path in embedded_checkpoint.iterdir():
        client.upload_file(str(path), "planned", f"tiny/{path.name}")
    code, plan = plan_json([*SMOKE, "--set", "checkpoint.uri=s3://planned/tiny"], capsys)
    assert (code, plan["notes"]) == (0, [])
    assert plan["checkpoint"]["num_parameters"] == 661_632
    assert plan["training"]["tokens_per_step"] < 256 * 24  # its tokenizer was there too


def test_evaluate_alone_is_planned(capsys):
    code, plan = plan_json(["plan", "evaluate", "--preset", "smoke"], capsys)
    assert code == 0
    assert (plan["num_runs"], plan["training"], plan["written"]) == (0, {}, [])
    assert plan["evaluation_completions"] == 256 * 32
    assert set(plan["memory_bytes"]) == {"evaluation"}


def test_too_little_memory_is_told_with_what_helps(capsys, tmp_path, embedded_checkpoint):
    arguments = [*SMOKE, *FAST, "--set", "train.device=auto", "--set", "train.max_completion_tokens=60"]
    code, plan = plan_json([*arguments, "--gpu", "2GB"], capsys)
    assert code == 0
    (text,) = [text for text in plan["warnings"] if text.startswith("arm grpo")]
    size = int(text.split("train.micro_batch_size ")[1].split()[0])
    train = TrainConfig(
        prompts_per_step=16,
        group_size=16,
        micro_batch_size=size,
        max_prompt_tokens=64,
        max_completion_tokens=60,
    )
    arm = Arm(name="grpo", algorithm=GRPO())
    assert estimate_memory(read_architecture(embedded_checkpoint), train, arm, on_gpu=True).peak <= 2 * 10**9


def test_rollouts_of_several_updates_and_passes():
    base = {"prompts_per_step": 4, "group_size": 8, "max_completion_tokens": 10}
    # 10 steps of 32 rollouts, each batch of 4 x 32 serving 4 steps (updates), or 8 (two passes over it)
    assert training_work(TrainConfig(**base, steps=10), 5)["rollouts"] == 320
    assert training_work(TrainConfig(**base, steps=10, updates_per_rollout=4), 5)["rollouts"] == 3 * 128
    assert training_work(TrainConfig(**base, steps=10, updates_per_rollout=4, num_iterations=2), 5)["rollouts"] == 256
    assert training_work(TrainConfig(**base, steps=10), 5)["tokens"] == 320 * 15


def test_heldout_measurements_count_start_and_end():
    train = TrainConfig(steps=100, heldout={"every": 30, "num_problems": 5, "num_samples": 2})
    # at 0, 30, 60, 90 and 100
    assert training_work(train, 1)["measured_completions"] == 5 * 5 * 2
