"""SCE on CIFAR-10 on a GPU: seconds of an epoch, then the recipe's 200 epochs, over as many calls as they take.

python benchmarks/gpu_training.py --data FOLDER --run RUN --out OUT

FOLDER holds CIFAR-10 as parquet shards, train-*.parquet and test-*.parquet. The first call measures epochs at batch 256
and 512; every call then trains recipe `cifar10` in RUN from where the one before stopped, until its seconds or the 200
epochs are over; then kNN and the linear probe follow. RUN must outlive the call. OUT/training.md says what was found.
The packages must be installed: a run directory names their versions.

    --seconds 570      of one call
    --dry              tiny, on the CPU: nothing that it prints is a result
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine
from pyarrow.parquet import read_metadata

ROOT = Path(__file__).resolve().parent.parent
SAVES_S = 25.0  # for the step under way, the checkpoint and the end of its processes


def command(module: str, *arguments: str) -> list[str]:
    """What the command of this module's ``main`` would run, which need not be installed."""
    return [sys.executable, "-c", f"import {module}; {module}.main()", *arguments]


def run(arguments: list[str], seconds: float, log: Path) -> int | None:
    """Exit status of a command; after its seconds it is asked to save and end, and the status is None."""
    paths = [str(path) for path in ROOT.glob("packages/*/src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with log.open("a") as stream:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            return process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            return None


def epoch_s(folder: Path, images: int) -> float:
    """Seconds of an epoch at the median rate of the records after the first epoch."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [record["images_per_s"] for record in records if "images_per_s" in record and record["epoch"] > 1]
    return images / statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    out, folder = arguments.out, arguments.run
    out.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    log, found = out / "training.log", folder / "found.json"
    results = json.loads(found.read_text()) if found.exists() else {}
    images = sum(read_metadata(file).num_rows for file in arguments.data.glob("train-*.parquet"))
    data = ["--data.source", str(arguments.data / "train-*.parquet"), "--data.test_source"]
    data += [str(arguments.data / "test-*.parquet")]
    small = ["--encoder.options", "{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}"] if arguments.dry else []
    small += ["--train.epochs", "2", "--evaluate.knn_every", "null", "--data.workers", "0"] if arguments.dry else []
    small += ["--encoder.stem", "small_pool", "--train.precision", "float32"] if arguments.dry else []

    for batch in (256, 512):
        name = f"batch {batch}"
        if name not in results:
            short = folder / f"epochs-{batch}"
            options = ["--config", "cifar10", *data, *small, "--train.epochs", "3", "--evaluate.knn_every", "null"]
            options += ["--train.batch_size", str(batch), "--out", str(short)]
            started = time.monotonic()
            status = run(command("ssl_sce.train", *options), min(120, end - time.monotonic()), log)
            if status == 0:
                results[name] = f"{epoch_s(short, images):.2f} s an epoch"
            print(f"{name}: {results.get(name, 'not finished')} ({time.monotonic() - started:.0f} s)", flush=True)

    if "trained" not in results:
        started = time.monotonic()
        options = ["--config", "cifar10", *data, *small, "--out", str(folder / "cifar10")]
        status = run(command("ssl_sce.train", *options), end - time.monotonic() - SAVES_S, log)
        results["seconds"] = results.get("seconds", 0.0) + time.monotonic() - started
        results["calls"] = results.get("calls", 0) + 1
        if status == 0:
            results["trained"] = f"{results['seconds'] / 60:.1f} min in {results['calls']} call(s), starts included"
        elif status is not None:
            results["failed"] = f"status {status}, see training.log"
    for name, extra in {"knn": [], "linear": ["--protocol", "sce_small"]}.items():
        left_s = end - time.monotonic()
        if "trained" in results and name not in results and left_s > 60:
            text = out / f"{name}.txt"
            status = run(command("ssl_core.cli", "eval", name, str(folder / "cifar10"), *extra), left_s, text)
            if status == 0:
                results[name] = " ".join(text.read_text().splitlines()[-1:])

    found.write_text(json.dumps(results))
    lines = ["# SCE on CIFAR-10" + (": a dry run, no result" if arguments.dry else ""), ""]
    lines += describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")).splitlines()
    lines += ["", *(f"* {name}: {value}" for name, value in results.items())]
    (out / "training.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
