"""Recipe `cifar10` (SCE) on a GPU in slices: each goes on where the one before stopped; then kNN and the linear probe.

python benchmarks/gpu_training.py --data FOLDER --run RUN --pieces FOLDER --seconds 400

The data folder holds CIFAR-10 as parquet shards, also in folders of their own. A slice that ends before all is done
exits with status 75 and leaves the run in pieces beside RUN, PIECES/run-0 and so on, each folder small enough to be
carried; where there is no RUN, it is put together of them. The packages must be installed, or their metadata beside
them: a checkpoint names their versions. ``--dry`` trains recipe `smoke`, whose images ship with scikit-learn.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SAVES_S = 25.0  # for the step under way, the checkpoint, the pieces and the end of its processes
PROBES_S = 60.0  # the least that kNN or the probe is begun with
MORE = 75  # exit status: to be continued
PIECE, PIECES = 15 * 2**20, 3  # bytes, and how many of them are carried at once


def run(module: str, arguments: list[str], seconds: float) -> int | None:
    """Exit status of a command, which need not be installed; after its seconds it is asked to save, and it is None."""
    process = subprocess.Popen([sys.executable, "-c", f"import {module}; {module}.main()", *arguments])
    try:
        return process.wait(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return None


def split(folder: Path, pieces: Path) -> None:
    """Leave all that a run needs to go on in files of one size, named for their number, a few in each folder."""
    for old in pieces.glob("run-*"):
        shutil.rmtree(old)
    whole = folder.with_suffix(".tar")
    with tarfile.open(whole, "w") as tar:
        tar.add(folder, arcname=".")
    total = -(-whole.stat().st_size // PIECE)
    with whole.open("rb") as stream:
        for index in range(total):
            file = pieces / f"run-{index // PIECES}" / f"piece-{index:05d}-of-{total:05d}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(stream.read(PIECE))
    whole.unlink()


def join(pieces: Path, folder: Path) -> None:
    """Put a run together again, if there are pieces."""
    if files := sorted(pieces.glob("run-*/piece-*"), key=lambda file: file.name):
        folder.mkdir(parents=True)
        whole = b"".join(file.read_bytes() for file in files)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=whole, check=True)


def found(folder: Path) -> dict[str, float]:
    """What the run shows so far."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "images_per_s" in record]
    numbers = {"epoch": max((record["epoch"] for record in steps), default=0.0)}
    rates = [record["images_per_s"] for record in steps if record["epoch"] > 1]
    numbers |= {"images_per_s": statistics.median(rates)} if rates else {}
    for name, key in {"knn": "top1", "linear": "last"}.items():
        if (file := folder / f"{name}.json").exists():
            numbers[name] = json.loads(file.read_text())[key]
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pieces", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--json", type=Path, help="file for what was found")
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU: nothing that it prints is a result")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    folder, pieces = arguments.run, arguments.pieces
    if not folder.exists():
        join(pieces, folder)
    # A slot is short: kNN and log wait for the GPU.
    fast = ["--train.capture=true", "--train.log_every=100", "--evaluate.knn_every=50"]
    shards = {split: arguments.data / "**" / f"{split}-*.parquet" for split in ("train", "test")}
    options = ["--config", "cifar10", "--data.source", str(shards["train"]), "--data.test_source", str(shards["test"])]
    if arguments.dry:
        options = ["--config", "smoke", "--train.device", "cpu", "--train.epochs", "2"]
    probes = {"knn": [], "linear": ["--protocol", "cached" if arguments.dry else "sce_small"]}

    status: int | None = 0
    if not (folder / "backbone.safetensors").exists():
        status = run("ssl_sce.train", [*options, *fast, "--out", str(folder)], end - time.monotonic() - SAVES_S)
    for name, extra in probes.items():
        if status == 0 and not (folder / f"{name}.json").exists():
            left_s = end - time.monotonic()
            begun = left_s > PROBES_S
            status = run("ssl_core.cli", ["eval", name, str(folder), *extra], left_s) if begun else None
    if (folder / "metrics.jsonl").exists():
        numbers = found(folder)
        print(", ".join(f"{name} {number:.4g}" for name, number in numbers.items()))
        if arguments.json:
            arguments.json.write_text(json.dumps(numbers))
    if status is None:
        split(folder, pieces)
        for part in sorted(pieces.glob("run-*")):
            print(f"to go on in another slot, bring {part} ({sum(file.stat().st_size for file in part.iterdir()):,} B)")
    raise SystemExit(MORE if status is None else status)


if __name__ == "__main__":
    main()
