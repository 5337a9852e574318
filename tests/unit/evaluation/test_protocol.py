"""The protocol record: what makes two evaluations one measurement."""

from progrpo.config import EvaluateConfig
from progrpo.data.dataset import Problem
from progrpo.evaluation.protocol import protocol_record

PROBLEMS = [Problem(f"p{i}", [{"role": "user", "content": str(i)}], "1", "exact", "test") for i in range(2)]


def record(problems=PROBLEMS, **settings):
    prompts = [[5, i] for i in range(len(problems))]
    config = EvaluateConfig(**settings)
    return protocol_record(
        config, problems=problems, prompts=prompts, dataset_digest="d" * 64, chat_template_digest=None
    )


def test_the_digest_is_of_the_problems_and_not_of_how_many_were_allowed():
    assert record()["digest"] == record(max_problems=2)["digest"] == record(max_problems=9)["digest"]
    assert record()["digest"] != record(PROBLEMS[:1], max_problems=1)["digest"]


def test_the_digest_is_of_the_sampler():
    assert record()["digest"] != record(temperature=1.0)["digest"]
    assert record()["digest"] == record(seed=7, dtype="bfloat16")["digest"]


def test_the_verifier_of_each_task_has_its_version():
    assert record()["verifier"] == {"exact": "1"}
