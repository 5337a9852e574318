"""Time the smoke comparison as a pipeline (KFP, MLflow) against the bare library calls, on the same work.

    python benchmarks/overhead.py [--steps 20] [--pairs 1]

The bare side runs the same steps with the same settings, two training runs at a time, each in one process, without kfp
and without tracking. Both sides run in turn, and their ratio is what counts: single times of a shared machine do not.
Peak memory is the largest sum of resident memory over the process tree, sampled every 0.2 s; pages shared between
processes count once for each, so it errs on the high side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from progrpo.config import Arm
from progrpo.environment import library_versions
from progrpo_components.settings import ComparePipeline
from progrpo_pipelines.packaging.presets import resolve

PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_memory(root: int) -> int:
    """Resident bytes of a process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


def timed(command: list[str], **environment: str) -> tuple[float, int]:
    """Wall seconds and peak bytes of a command."""
    started = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return time.monotonic() - started, peak


def bare(parameters: ComparePipeline, root: Path) -> None:
    """Run the job by library calls alone; each training run is a process, as two of them share the cores."""
    from progrpo.checkpoints.importer import import_checkpoint
    from progrpo.comparison.compare import compare
    from progrpo.data.prepare import prepare_dataset
    from progrpo.evaluation.evaluate import evaluate

    dataset, checkpoint = root / "dataset", root / "checkpoint"
    prepare_dataset(parameters.dataset, dataset)
    import_checkpoint(parameters.checkpoint, checkpoint)
    evaluate(parameters.evaluation, dataset=dataset, checkpoint=checkpoint, output=root / "start")
    runs = [(arm, seed) for seed in parameters.seeds for arm in parameters.arms]

    def one(run: tuple[Arm, int]) -> None:
        arm, seed = run
        command = [sys.executable, __file__, "--one", str(root), arm.name, str(seed)]
        subprocess.run(command, check=True, input=parameters.model_dump_json(), text=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, runs))
    names = [f"{arm.name}-{seed}" for arm, seed in runs]
    compare(
        parameters.comparison,
        evaluations=[root / "start", *(root / name / "evaluation" for name in names)],
        trainings=[root / name / "training" for name in names],
        output=root / "comparison",
    )


def one(root: Path, name: str, seed: int) -> None:
    """Train and evaluate one arm with one seed."""
    from progrpo.evaluation.evaluate import evaluate
    from progrpo.training.train import train

    parameters = ComparePipeline.model_validate_json(sys.stdin.read())
    arm = next(arm for arm in parameters.arms if arm.name == name)
    inputs = {"dataset": root / "dataset", "checkpoint": root / "checkpoint"}
    output = root / f"{name}-{seed}"
    training = output / "training"
    train(arm, seed, parameters.train, **inputs, output=training)
    inputs["checkpoint"] = training / "checkpoint"
    evaluate(parameters.evaluation, **inputs, output=output / "evaluation", arm=arm, seed=seed, training=training)


def main() -> None:
    """Run both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="training steps (default: the preset's)")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(Path(options.one[0]), options.one[1], int(options.one[2]))
    if options.bare:
        return bare(ComparePipeline.model_validate_json(sys.stdin.read()), Path(options.bare))

    sets = [f"train.steps={options.steps}"] if options.steps else []
    parameters = resolve("compare", preset="smoke", settings=sets)
    root = Path(tempfile.mkdtemp(prefix="progrpo-overhead-"))
    (root / "parameters.json").write_text(parameters.model_dump_json())
    program = Path(sys.executable).with_name("progrpo")
    results = []
    try:
        for pair in range(options.pairs):
            run = ["run", "compare", "--preset", "smoke", *(part for value in sets for part in ("--set", value))]
            pipeline_s, pipeline_b = timed([str(program), *run, "--output", str(root / f"pipeline{pair}")])
            command = f"{sys.executable} {__file__} --bare {root / f'bare{pair}'} < {root / 'parameters.json'}"
            (root / f"bare{pair}").mkdir()
            bare_s, bare_b = timed(["sh", "-c", f"exec {command}"])
            results.append(
                {
                    "pipeline_s": round(pipeline_s, 1),
                    "bare_s": round(bare_s, 1),
                    "ratio": round(pipeline_s / bare_s, 3),
                    "pipeline_peak_gib": round(pipeline_b / 2**30, 2),
                    "bare_peak_gib": round(bare_b / 2**30, 2),
                }
            )
    finally:
        shutil.rmtree(root)
    versions = library_versions("torch", "transformers", "trl", "kfp", "mlflow")
    print(json.dumps({"steps": parameters.train.steps, "pairs": results, "versions": versions}, indent=2))
    return None


if __name__ == "__main__":
    main()
