"""A program that kills writers of resume points; test_state_kills.py runs it, since it forks and pytest has threads.

Usage: ``state_writer.py random|everywhere|s3 PLACE COUNT``. Prints one JSON object with what it found.
"""

import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from progrpo.training.state.points import read_point
from progrpo.training.state.store import StateStore

FILES = ("model.safetensors", "optimizer.safetensors", "rank_0.safetensors", "sub/state.json")


def content(step, name, size=20_000):
    return random.Random(f"{step} {name}").randbytes(size)


def fill(step):
    def write(directory):
        for name in FILES:
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(step, name))

    return write


def check(point):
    """Fail unless the point is whole and of one step."""
    for name in FILES:
        assert (point.directory / name).read_bytes() == content(point.step, name), f"{point.directory}: {name}"


def fork(work):
    """Start a writer in a process of its own and return its pid and the pipe that its acknowledgements come from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            work(lambda step: os.write(writer, f"{step}\n".encode()))
        finally:
            os._exit(1)
    os.close(writer)
    return pid, reader


def reap(pid, reader):
    """Return the last acknowledged step of a dead writer, None if there is none, and whether it was killed."""
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    with os.fdopen(reader) as pipe:
        steps = pipe.read().split("\n")[:-1]
    return int(steps[-1]) if steps else None, killed


def at_random(place, count):
    latest, midway, kills = 0, 0, 0
    while kills < count or (midway < 5 and kills < 8 * count):  # a busy machine may kill few at work
        kills += 1

        def save_in_a_loop(acknowledge, latest=latest):
            with StateStore(place, keep_last=1, lock_timeout_s=5) as store:
                for step in range(latest + 1, latest + 1000):
                    store.save(step, fill(step), fingerprint={})
                    acknowledge(step)

        pid, reader = fork(save_in_a_loop)
        time.sleep(random.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        acknowledged, _ = reap(pid, reader)
        midway += any(path.name.startswith(".unfinished") for path in Path(place).iterdir())
        with StateStore(place, keep_last=1, lock_timeout_s=0) as store:  # the lock died with its holder
            assert not [path for path in Path(place).iterdir() if path.name.startswith(".unfinished")]
            point = store.latest()
        if acknowledged is not None:
            assert (point.step if point else -1) >= acknowledged, f"{point} is older than {acknowledged}"
        assert point is None or point.step >= latest
        if point is not None:
            check(point)
            latest = point.step
    return {"latest": latest, "midway": midway}


def everywhere(place, count):
    """Kill a writer at every ``count``-th operation on the file system, while it saves steps 1, 2 and 2 again."""
    for number in range(random.randint(1, count), 10_000, count):
        root = Path(place) / str(number)

        def save_thrice(acknowledge, root=root, number=number):
            left = [number]

            def die(event, _):
                if left and event.split(".")[0] in ("open", "os", "shutil", "tempfile") and event != "os.fork":
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            with StateStore(str(root), keep_last=1, lock_timeout_s=0) as store:
                sys.addaudithook(die)
                for step in (1, 2, 2):
                    store.save(step, fill(step), fingerprint={})
                    acknowledge(step)
                left.clear()
                os._exit(0)

        pid, reader = fork(save_thrice)
        acknowledged, killed = reap(pid, reader)
        for directory in root.glob("step_*"):
            read_point(directory)  # whole, also when it was killed while it removed one
        with StateStore(str(root), keep_last=1, lock_timeout_s=0) as store:
            point = store.latest()
            if acknowledged is not None:
                assert (point.step if point else -1) >= acknowledged, f"operation {number}: {point}"
            if point is not None:
                check(point)
            store.save(3, fill(3), fingerprint={})
        names = sorted(path.name[:12] for path in root.iterdir())
        assert names == [".lock", "step_0000003"], f"operation {number}: {names}"
        if not killed:
            assert acknowledged == 2
            return {"operations": number}
    raise AssertionError


def into_s3(place, count):
    latest, steps = 0, []
    while len(steps) < count or (latest == 0 and len(steps) < 8 * count):  # a busy machine may upload nothing in time

        def save_in_a_loop(acknowledge, latest=latest):
            store = StateStore(place, keep_last=2, scratch=Path(tempfile.mkdtemp()))
            for step in range(latest + 1, latest + 1000):
                store.save(step, fill(step), fingerprint={})
                acknowledge(step)
                time.sleep(0.03)

        pid, reader = fork(save_in_a_loop)
        time.sleep(random.uniform(0.5, 1.5))
        os.kill(pid, signal.SIGKILL)
        reap(pid, reader)
        with StateStore(place) as store:  # on another machine: nothing of the scratch directory is there
            point = store.latest()
            if point is not None:
                check(point)
                assert point.step >= latest
                latest = point.step
        steps.append(latest)
    return {"steps": steps}


if __name__ == "__main__":
    kind, place, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.basicConfig(level=logging.ERROR)
    print(json.dumps({"random": at_random, "everywhere": everywhere, "s3": into_s3}[kind](place, count)))
