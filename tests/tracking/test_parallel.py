"""Many steps at once on one server, without a lock between them: one pipeline run, one summary an arm, whoever wins."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from progrpo_components.tracking import connect, locate, spool
from progrpo_components.tracking.delivery import Delivery
from progrpo_components.tracking.runs import SUPERSEDED_TAG, Finder, new_client

from .conftest import history, place_of, runs_of

ARMS = 8


def attempt_together(root: Path, run: str, arms: list[str], attempt: int, experiment: str) -> None:
    """Deliver a step of each arm at the same moment; a later attempt says again what an earlier one has said."""
    barrier = threading.Barrier(len(arms))

    def task(arm: str) -> None:
        place = locate(experiment=experiment, pipeline_run_id=run, run_name="race", task="train", arm=arm, seed=0)
        path = spool.spool_beside(root / f"{arm}-{attempt}")
        spool.append(path, {"place": place.model_dump(mode="json")})
        for step in range(1, 3 * attempt + 1):
            spool.append(path, {"metrics": {"train/reward": step / 8}, "step": step, "time": 1000 * attempt + step})
        if attempt == 3:
            spool.append(path, {"end": "FINISHED", "time": 5000})
        delivery = Delivery(path)
        barrier.wait()
        delivery.deliver()

    with ThreadPoolExecutor(len(arms)) as pool:
        list(pool.map(task, arms))


@pytest.mark.slow
def test_eight_arms_at_once_and_each_retried_twice(sqlite_server, use, pipeline_run, tmp_path):
    """Also the experiment is new, and made by one of them."""
    use(sqlite_server.uri)
    arms = [f"arm{number}" for number in range(ARMS)]
    for attempt in (1, 2, 3):
        attempt_together(tmp_path, pipeline_run, arms, attempt, f"race-{pipeline_run}")
        client = new_client(sqlite_server.uri)
        runs = runs_of(client, pipeline_run, f"race-{pipeline_run}")
        assert sorted(runs) == [*(f"{arm}-seed0" for arm in arms), "race"]
        assert [run.data.tags["progrpo.role"] for run in runs.values()].count("pipeline") == 1
        for arm in arms:
            points = history(client, runs[f"{arm}-seed0"].info.run_id)
            assert points == {"train/reward": [(step, step / 8) for step in range(1, 3 * attempt + 1)]}
    assert {runs[f"{arm}-seed0"].info.status for arm in arms} == {"FINISHED"}


def test_of_runs_made_at_the_same_moment_the_oldest_stays(sqlite_server, use, pipeline_run):
    """The order in which a race would have made them is made by hand: the younger one was seen, and used, first."""
    use(sqlite_server.uri)
    place = place_of(pipeline_run)
    client, younger = connect(place)
    experiment_id = client.get_run(younger).info.experiment_id
    start_ms = client.get_run(younger).info.start_time - 1000
    older = client.create_run(experiment_id, start_time=start_ms, run_name=place.name, tags=place.all_tags)
    found = Finder(client).open_run(place)
    assert found.run_id == older.info.run_id
    assert not found.is_new
    assert client.get_run(younger).info.lifecycle_stage == "deleted"
    assert client.get_run(younger).data.tags[SUPERSEDED_TAG] == older.info.run_id
    assert sorted(runs_of(client, pipeline_run)) == sorted(["grpo-seed0", pipeline_run])


def test_a_step_whose_run_went_says_everything_again_in_the_one_that_stayed(sqlite_server, use, pipeline_run, tmp_path):
    use(sqlite_server.uri)
    place = place_of(pipeline_run)
    path = spool.spool_beside(tmp_path / "out")
    spool.append(path, {"place": place.model_dump(mode="json")})
    spool.append(path, {"params": {"a": "1"}})
    spool.append(path, {"metrics": {"train/reward": 0.25}, "step": 1, "time": 1})
    delivery = Delivery(path)
    delivery.deliver()
    client = new_client(sqlite_server.uri)
    lost = runs_of(client, pipeline_run)["grpo-seed0"].info
    older = client.create_run(
        lost.experiment_id, start_time=lost.start_time - 1, run_name=place.name, tags=place.all_tags
    )
    Finder(client).open_run(place)  # another step finds both
    spool.append(path, {"metrics": {"train/reward": 0.5}, "step": 2, "time": 2})
    delivery.deliver()
    assert history(client, older.info.run_id) == {"train/reward": [(1, 0.25), (2, 0.5)]}
    assert client.get_run(older.info.run_id).data.params == {"a": "1"}


def test_a_run_that_people_deleted_stays_deleted(sqlite_server, use, pipeline_run, tmp_path, caplog):
    use(sqlite_server.uri)
    path = spool.spool_beside(tmp_path / "out")
    spool.append(path, {"place": place_of(pipeline_run).model_dump(mode="json")})
    delivery = Delivery(path)
    delivery.deliver()
    client = new_client(sqlite_server.uri)
    client.delete_run(runs_of(client, pipeline_run)["grpo-seed0"].info.run_id)
    spool.append(path, {"metrics": {"train/reward": 0.5}, "step": 2, "time": 2})
    spool.append(path, {"end": "FINISHED", "time": 2})
    delivery.deliver()
    assert "was deleted" in caplog.text
    assert spool.read_state(path).pending == 0
    assert sorted(runs_of(client, pipeline_run)) == [pipeline_run]
