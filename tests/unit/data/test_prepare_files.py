import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progrpo.config import CountdownSource, DatasetConfig, FileSource
from progrpo.data.dataset import load_problems
from progrpo.data.prepare import prepare_dataset
from progrpo.errors import DataError, ManifestError, StorageError

GOOD = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepare(tmp_path, train, evaluation=None, *, system_prompt=None, max_dropped_frac=0.5, **source):
    config = DatasetConfig(
        source=FileSource(train_uri=train, eval_uri=evaluation, **{"task": "exact", **source}),
        system_prompt=system_prompt,
        max_dropped_frac=max_dropped_frac,
    )
    output = tmp_path / "dataset"
    manifest = prepare_dataset(config, output)
    return output, manifest, json.loads((output / "report.json").read_text())


def refused(tmp_path, train, *texts, **kwargs):
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train, **kwargs)
    for text in texts:
        assert text in str(error.value)
    assert not (tmp_path / "dataset").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_jsonl_parquet_and_csv_give_the_same_problems(tmp_path):
    jsonl = write(tmp_path / "a.jsonl", GOOD)
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(GOOD)
    found = []
    for number, uri in enumerate([jsonl, str(tmp_path / "a.parquet"), (tmp_path / "a.csv").as_uri()]):
        (tmp_path / str(number)).mkdir()
        output, manifest, report = prepare(tmp_path / str(number), uri)
        assert manifest.metadata == {"num_train": 18, "num_eval": 2, "tasks": ["exact"]}
        assert report == {
            **{"rows_read": 20, "rows_kept": 20, "num_train": 18, "num_eval": 2},
            **{"dropped": {}, "examples": []},
        }
        found.append([(p.id, p.prompt, p.answer) for s in ("train", "eval") for p in load_problems(output, s)])
    assert found[0] == found[1] == found[2]
    assert len({problem_id for problem_id, _, _ in found[0]}) == 20


def test_messages_system_prompt_and_numbers(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "2"}]
    rows = [{"q": "one", "a": 1, "difficulty": 0.5}, {"q": chat, "a": 2.5}]
    output, _, _ = prepare(
        tmp_path,
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [{"q": "three", "a": "3"}]),
        **{"system_prompt": "Be brief.", "prompt_column": "q", "answer_column": "a"},
    )
    one, two = load_problems(output, "train")
    system = {"role": "system", "content": "Be brief."}
    assert one.prompt == [system, {"role": "user", "content": "one"}]
    assert (one.answer, one.difficulty, one.source, one.task) == ("1", 0.5, "a.jsonl", "exact")
    assert (two.prompt, two.answer, two.difficulty) == ([system, *chat], "2.5", None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{oops", "line: malformed JSON"),
        ("[1]", "line: not a JSON object"),
        ({"answer": "1"}, "prompt: is missing"),
        ({"prompt": "p"}, "answer: is missing"),
        ({"prompt": "  ", "answer": "1"}, "prompt: is empty"),
        ({"prompt": "p", "answer": ""}, "answer: is empty"),
        ({"prompt": 5, "answer": "1"}, "prompt: must be a text or a list of messages, not int"),
        ({"prompt": [], "answer": "1"}, "prompt: is empty"),
        ({"prompt": ["p"], "answer": "1"}, "prompt: each message must be"),
        ({"prompt": [{"role": "robot", "content": "p"}], "answer": "1"}, "prompt: each message must be"),
        ({"prompt": [{"role": "user", "content": ""}], "answer": "1"}, "prompt: is empty"),
        ({"prompt": [{"role": "assistant", "content": "p"}], "answer": "1"}, "prompt: the last message must be"),
        ({"prompt": "p", "answer": "one\ntwo"}, "answer: is not an answer of the exact task"),
        ({"prompt": "p", "answer": "Answer: 5"}, "answer: is not an answer of the exact task"),
        ({"prompt": "p", "answer": True}, "answer: must be a text, not bool"),
        ({"prompt": "p", "answer": ["1"]}, "answer: must be a text, not list"),
        ('{"prompt": "p", "answer": NaN}', "answer: must be a text, not float"),
        ('{"prompt": "\\ud800", "answer": "1"}', "prompt: is not valid Unicode"),
        ({"prompt": "p", "answer": "1", "difficulty": "hard"}, "difficulty: is not a number"),
        ('{"prompt": "p", "answer": "1", "difficulty": 1' + "0" * 400 + "}", "difficulty: is not a number"),
    ],
)
def test_bad_rows_are_left_out_counted_and_named(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", [*GOOD, row])
    _, manifest, report = prepare(tmp_path, path)
    assert manifest.metadata["num_train"] + manifest.metadata["num_eval"] == 20
    ((found, count),) = report["dropped"].items()
    assert found.startswith(reason)
    assert count == 1
    assert report["examples"][0]["place"] == f"{path} line 21"


def test_too_many_bad_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", [*GOOD[:8], {"prompt": "p"}, "{oops"])
    refused(
        *(tmp_path, path, "2 of 10 rows cannot be used", "max_dropped_frac 0.1"),
        *(f"{path} line 9, answer: is missing", f"{path} line 10, line: malformed JSON"),
        max_dropped_frac=0.1,
    )


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", '{"question": "q", "answer": "1"}\n', ("has no column 'prompt'", "'question', 'answer'")),
        ("a.csv", "prompt,solution\np,1\n", ("has no column 'answer'", "'prompt', 'solution'")),
        ("a.csv", "", ("has no column 'prompt'", "Its columns: none")),
        ("a.csv", "prompt,answer\n", ("has no rows",)),
        ("a.csv", "prompt,answer\np,1,2\nq,1\nr,2\n", ("a.csv line 2", "wrong number of cells")),
        ("a.csv", 'prompt,answer\n"p,1\n', ("a.csv line", "cannot be read as CSV")),
        ("a.jsonl", "", ("has no rows",)),
        ("a.jsonl", "\n \n", ("has no rows",)),
        ("a.txt", "p", ("unknown kind of file '.txt'. Allowed: .jsonl, .parquet, .csv",)),
        ("a.parquet", "no", ("not a readable parquet file",)),
        ("a.jsonl", '{"prompt": "p", "answer": "1"}\n', ("one usable problem",)),
    ],
)
def test_unusable_files(tmp_path, name, content, texts):
    path = tmp_path / name
    path.write_text(content)
    refused(tmp_path, str(path), name, *texts, max_dropped_frac=0.2)


def test_parquet_without_the_column(tmp_path):
    pq.write_table(pa.table({"prompt": ["p"], "reply": ["1"]}), tmp_path / "a.parquet")
    refused(tmp_path, str(tmp_path / "a.parquet"), "has no column 'answer'", "'prompt', 'reply'")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")  # opens, but its first byte is an input/output error
    refused(tmp_path, str(tmp_path / "a.jsonl"), "a.jsonl cannot be read", "nput/output error")


def test_parquet_texts_that_are_not_unicode(tmp_path):
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken, "answer": ["1"]}), tmp_path / "a.parquet")
    refused(tmp_path, str(tmp_path / "a.parquet"), "a.parquet is not a readable parquet file")


def test_missing_file(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        prepare(tmp_path, str(tmp_path / "none.jsonl"))


def test_csv_values_stay_what_was_written(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,answer\n"two\nlines",007\nq,1.50\n', encoding="utf-8-sig")
    output, _, _ = prepare(tmp_path, str(tmp_path / "a.csv"), eval_frac=0.5)
    problems = load_problems(output, "train") + load_problems(output, "eval")
    assert {(p.prompt[0]["content"], p.answer) for p in problems} == {("two\nlines", "007"), ("q", "1.50")}


def test_duplicates_within_and_between_splits(tmp_path):
    train = [*GOOD[:5], GOOD[0], {**GOOD[1], "answer": "other"}, GOOD[7]]
    output, manifest, report = prepare(
        tmp_path, write(tmp_path / "a.jsonl", train), write(tmp_path / "b.jsonl", [*GOOD[6:9], GOOD[6]])
    )
    assert manifest.metadata["num_train"] == 5
    assert manifest.metadata["num_eval"] == 3
    assert report["dropped"] == {
        "prompt: duplicate": 2,
        "prompt: duplicate with another answer; the first one stays": 1,
        "prompt: also in the held-out file": 1,
    }
    assert load_problems(output, "train")[1].answer == GOOD[1]["answer"]


def test_nothing_left_for_training(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match="no training problem is left: 40 rows read"):
        prepare(tmp_path, path, path)


def test_split_depends_on_seed_and_content_only(tmp_path):
    def held_out(name, rows, seed):
        (tmp_path / name).mkdir()
        output, _, _ = prepare(tmp_path / name, write(tmp_path / f"{name}.jsonl", rows), seed=seed, eval_frac=0.25)
        return {problem.id for problem in load_problems(output, "eval")}

    first = held_out("a", GOOD, 0)
    assert len(first) == 5
    assert held_out("b", GOOD[::-1], 0) == first
    assert held_out("c", GOOD, 1) != first


def test_max_rows(tmp_path):
    _, _, report = prepare(tmp_path, write(tmp_path / "a.jsonl", GOOD), max_rows=10)
    assert report["rows_kept"] == 10


def test_answers_their_verifier_cannot_read(tmp_path):
    rows = [
        {"prompt": "p", "answer": "22"},
        *({"prompt": str(i), "answer": '{"numbers":[1],"target":1}'} for i in "ab"),
    ]
    _, _, report = prepare(tmp_path, write(tmp_path / "a.jsonl", rows), task="countdown")
    assert report["dropped"] == {"answer: is not an answer of the countdown task": 1}


def test_math_answers_the_verifier_cannot_read(tmp_path):
    rows = [*GOOD, {"prompt": "p", "answer": r"\frac{1}{2}"}, {"prompt": "q", "answer": "$"}]
    _, _, report = prepare(tmp_path, write(tmp_path / "a.jsonl", rows), task="math")
    assert report["dropped"] == {"answer: is not an answer of the math task": 1}
    assert report["rows_kept"] == 21


def test_countdown_dataset_repeats(tmp_path):
    config = DatasetConfig(source=CountdownSource(num_train=40, num_eval=10, seed=3), system_prompt="Compute.")
    first, second = (prepare_dataset(config, tmp_path / name) for name in "ab")
    assert first.digest == second.digest
    assert first.metadata == {"num_train": 40, "num_eval": 10, "tasks": ["countdown"]}
    problem = load_problems(tmp_path / "a", "eval")[0]
    assert [message["role"] for message in problem.prompt] == ["system", "user"]
    assert len({problem.id for problem in load_problems(tmp_path / "a", "train")}) == 40


def test_load_checks_the_manifest(tmp_path):
    config = DatasetConfig(source=CountdownSource(num_train=4, num_eval=2))
    prepare_dataset(config, tmp_path / "a")
    with pytest.raises(StorageError, match="not empty"):
        prepare_dataset(config, tmp_path / "a")
    with (tmp_path / "a" / "train.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ManifestError, match="differs from its manifest"):
        load_problems(tmp_path / "a", "train")
