"""Every method alike on CIFAR-10, by recipe `evidence_cpu` of each package: accuracy over seeds, speed, memory.

python benchmarks/evidence.py --data cifar10 --runs runs/evidence     # trains and evaluates what RUNS lacks
python benchmarks/evidence.py --data cifar10 --runs runs/evidence --trials --seeds 0    # what papers say matters
python benchmarks/evidence.py --runs runs/evidence --out benchmarks/results    # writes table and picture

CIFAR10 holds train-*.parquet and test-*.parquet. All methods have the same net, images, number of steps and evaluation.
A run that was stopped goes on. Two calls with `OMP_NUM_THREADS=1` and other `--seeds` or `--rows` use two cores better
than one.
Speed is the median over a training's windows of 20 steps (with labels 10), data and views included; what else runs
lowers it.
Peak memory is the resident set of the training process, 0.7 GiB of which are PyTorch and its libraries.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from ssl_core.config import parse_config

MOCO = "--method.base={mocov2: {temperature: 0.1, queue: {length: 4096}, momentum: {value: 0.99, shuffle: false}}}"
_NO_NORM = ["--projector.out_dim=128", "--projector.last_norm=none"]
BASES = {
    "SimSiam": [],
    "BYOL": ["--method.base=byol", *_NO_NORM],
    "SimCLR": ["--method.base=simclr", "--projector.out_dim=128", "--projector.last_norm=affine"],
    "MoCo v2, strong keys": [MOCO, *_NO_NORM],
    "Barlow Twins": ["--method.base=barlow", "--projector.last_norm=none", "--optim.lr=0.02"],
}
# Row -> (package, changes of its recipe).
ROWS: dict[str, tuple[str, list[str]]] = {
    "MoCo v2": ("sce", ["--method.coefficient=1"]),
    "ReSSL": (
        "sce",
        ["--method.weights=[0,1,0]", "--method.temperature=0.1", "--method.target_temperature=0.04"],
    ),
    "SCE": ("sce", []),
    "CLSA": ("clsa", []),
    "CLIM": ("clim", []),
    "LeOCLR": ("leoclr", []),
    **{name: ("dssl", ["--method.heavy=none", *changes]) for name, changes in BASES.items()},
    **{f"DSSL over {name}": ("dssl", changes) for name, changes in BASES.items()},
}
_COLORS = "{color_jitter: {prob: 0.8}}, {grayscale: {prob: 0.2}}, {horizontal_flip: {}}"
_STRONG = f"augmentation: [{{random_resized_crop: {{scale: [0.2, 1]}}}}, {_COLORS}], size: 24"
_WHOLE = f"augmentation: [{{resize: {{}}}}, {_COLORS}], size: 24"
_WEAK = "augmentation: weak, size: 24"
# What the papers say matters, where their order does not show: trial -> (row, further changes).
TRIALS: dict[str, tuple[str, list[str]]] = {
    "SCE, target temperature 0.03": ("SCE", ["--method.target_temperature=0.03"]),
    "SCE, target temperature 0.07": ("SCE", ["--method.target_temperature=0.07"]),
    "LeOCLR, strong keys": ("LeOCLR", [f"--views=[{{{_WHOLE}}}, {{{_STRONG}, count: 2}}]"]),
    "LeOCLR, query cropped": (
        "LeOCLR",
        ["--method.anchor=random_crop", f"--views=[{{{_STRONG}}}, {{{_WEAK}, count: 2}}]"],
    ),
    "CLIM, no mixing": (
        "CLIM",
        ["--method.mixing=none", f"--views=[{{{_STRONG}}}, {{{_WEAK}}}, {{{_WEAK}, partner: true}}]"],
    ),
    "DSSL over SimCLR, RA(2, 5) and Jigsaw(4)": ("DSSL over SimCLR", ["--method.heavy=[ra_2_5, jigsaw_4]"]),
    "DSSL over Barlow Twins, RA(2, 5) and Jigsaw(4)": ("DSSL over Barlow Twins", ["--method.heavy=[ra_2_5, jigsaw_4]"]),
    **{f"{row}, 8 epochs": (row, ["--train.epochs=8"]) for row in ("MoCo v2", "SCE", "LeOCLR", "CLIM")},
}
ALIKE = ["--config=evidence_cpu", "--report=false"]
REFERENCES = ["random", "pixels"]
SUPERVISED = "supervised"  # by labels, the same net and steps
# MoCo's learning rate of 30 is too high even for the wider net of recipe cifar10_cpu: 48.7 against 57.7.
LINEAR = ["--lr=0.3", "--crop=random"]


def changes_of(name: str) -> tuple[str, list[str]]:
    """Package of a row or a trial, and what it changes of its recipe."""
    if name not in TRIALS:
        return ROWS[name]
    row, further = TRIALS[name]
    package, changes = ROWS[row]
    return package, [*changes, *further]


def folder_of(runs: Path, name: str, seed: int) -> Path:
    """Folder of a row's run with a seed, such as ``dssl-over-byol-0``."""
    return runs / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}"


def run(arguments: list[str], log: Path) -> int:
    """Runs a command of this environment to its end; the largest resident set of its process in bytes."""
    command = [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]
    with log.open("a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed, see {log}: {' '.join(command)}")
    return usage.ru_maxrss * 1024


def measured(arguments: list[str], folder: Path) -> None:
    """Runs a training, and leaves its memory and the machine in ``process.json`` of its folder."""
    peak = run(arguments, folder.with_suffix(".log"))
    machine = describe_machine(torch.device("cpu")).splitlines()
    (folder / "process.json").write_text(json.dumps({"peak_bytes": peak, "machine": machine}))


def train(name: str, seed: int, folder: Path, source: str) -> None:
    """Trains a row to its end; kNN, which the command evaluates, and ``process.json`` are then in its folder."""
    if (folder / "process.json").is_file():
        return
    package, changes = changes_of(name)
    arguments = [*ALIKE, f"--data.source={source}", f"--seed={seed}", *changes, f"--out={folder}"]
    measured([f"ssl-{package}-train", *arguments], folder)


def evaluate(encoder: list[str], seed: int, folder: Path, source: str, *more: str) -> None:
    """Linear classifier on center and random crops, similarities, and more: ``knn``, ``crops``."""
    tasks = {
        "linear": ["--protocol=cached", *LINEAR, f"--seed={seed}"],
        "similarity": [],
        "knn": [],  # where training has not evaluated it
        "crops": ["--protocol=leoclr", "--epochs=5", *LINEAR, f"--seed={seed}"],  # the classifier learns on crops too
    }
    for task in ("linear", "similarity", *more):
        command, out = ("linear", folder / task) if task == "crops" else (task, folder)
        if not (out / f"{command}.json").is_file():
            out.mkdir(parents=True, exist_ok=True)
            data = [f"--data.source={source}", f"--out={out}"]
            run(["ssl-core", "eval", command, *encoder, *tasks[task], *data], folder.with_suffix(".log"))


def complete(runs: Path, names: list[str], seeds: list[int], source: str) -> None:
    """Trains and evaluates each row or trial that RUNS lacks, all of a seed before the next."""
    runs.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in names:
            folder = folder_of(runs, name, seed)
            print(f"{name}, seed {seed}", flush=True)
            train(name, seed, folder, source)
            on_crops = name in TRIALS and name.startswith(("MoCo v2", "LeOCLR"))
            evaluate([str(folder)], seed, folder, source, *(["crops"] if on_crops else []))


def complete_references(runs: Path, seeds: list[int], source: str) -> None:
    """Evaluates a random encoder of SCE's net and pixels, and trains with labels, where RUNS lacks it."""
    for seed in seeds:
        like = f"--like={folder_of(runs, 'SCE', seed)}"
        for name in REFERENCES:
            if name == "random" or seed == seeds[0]:  # pixels have no seed
                drawn = [f"--seed={seed}"] if name == "random" else []
                evaluate([name, like, *drawn], seed, folder_of(runs, name, seed), source, "knn")
        folder = folder_of(runs, SUPERVISED, seed)
        if not (folder / "process.json").is_file():
            folder.mkdir(exist_ok=True)
            settings = ["--protocol=supervised_cifar", "--epochs=4", "--batch_size=256", f"--seed={seed}"]
            arguments = ["random", like, *settings, f"--data.source={source}", f"--out={folder}"]
            measured(["ssl-core", "eval", "finetune", *arguments], folder)
        learnt = folder / f"finetune-supervised_cifar-seed{seed}" / "backbone.safetensors"
        evaluate([str(learnt)], seed, folder, source, "knn")


def read(folder: Path) -> dict[str, float]:
    """What is known of a run, by column; accuracies in percent."""
    found: dict[str, float] = {}

    def content(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}

    if metrics := content("backbone.json").get("metrics"):
        found["kNN"] = 100 * metrics["knn_top1"]
    if knn := content("knn.json"):
        found["kNN"] = 100 * knn["top1"]
    if linear := content("linear.json"):
        found["linear"] = 100 * linear["last"]
        found["random crops"] = 100 * statistics.mean(linear["random_crops"])
    if crops := content("crops/linear.json"):
        found["crops learnt"] = 100 * statistics.mean(crops["random_crops"])
    if similarity := content("similarity.json"):
        found["intra-class"], found["inter-class"] = similarity["intra_class"], similarity["inter_class"]
    if supervised := content("finetune-supervised_cifar.json"):
        found["itself"] = 100 * supervised["last"]
    if process := content("process.json"):
        found["peak GiB"] = process["peak_bytes"] / 2**30
        log = next(folder.rglob("metrics.jsonl")).read_text().splitlines()
        rates = [record["images_per_s"] for record in map(json.loads, log) if "images_per_s" in record]
        found["images/s"] = statistics.median(rates)  # without searches for neighbours
    return found


TABLES = [  # of column -> decimals
    {"kNN": 1, "linear": 1, "random crops": 1, "crops learnt": 1, "itself": 1},
    {"intra-class": 3, "inter-class": 3},
    {"views": 0, "images/s": 0, "peak GiB": 2},
]


def collect(runs: Path, names: Iterable[str], seeds: list[int]) -> dict[str, list[dict[str, float]]]:
    """Row or trial -> what is known of it for each seed that has run."""
    rows = {}
    for name in names:
        found = [read(folder_of(runs, name, seed)) for seed in seeds]
        rows[name] = [values for values in found if values]
        if rows[name] and name not in REFERENCES:
            rows[name][0]["views"] = 1 if name == SUPERVISED else views_of(name)
    return {name: values for name, values in rows.items() if values}


def views_of(name: str) -> int:
    """Number of views that a row makes of an image in a step."""
    package, changes = changes_of(name)
    module = import_module(f"ssl_{package}.train")
    recipes = Path(module.__file__ or "").parent / "recipes"
    config = parse_config(module.Config, [ALIKE[0], *changes], prog=package, description="", recipes=recipes)
    return sum(len(spec.sizes) for spec in config.view_specs())


def table(rows: dict[str, list[dict[str, float]]], columns: dict[str, int]) -> Iterator[str]:
    """Lines of a table of the rows and columns that have values: mean and standard deviation over the seeds."""
    has = {name: set[str]().union(*seeds).intersection(columns) for name, seeds in rows.items()}
    rows = {name: seeds for name, seeds in rows.items() if has[name]}
    columns = {name: decimals for name, decimals in columns.items() if any(name in has[row] for row in rows)}
    yield f"| | seeds | {' | '.join(columns)} |"
    yield f"|---|{'---|' * (1 + len(columns))}"
    for name, seeds in rows.items():
        cells = []
        for column, decimals in columns.items():
            values = [found[column] for found in seeds if column in found]
            spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{decimals}f}{spread}" if values else "")
        yield f"| {name} | {len(seeds)} | {' | '.join(cells)} |"


def plot(rows: dict[str, list[dict[str, float]]], file: Path) -> None:
    """A dot for each seed, by row, for kNN and the linear classifier."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 0.28 * len(rows) + 1.2), sharey=True)
    for panel, column in zip(panels, ("kNN", "linear"), strict=True):
        for y, (name, seeds) in enumerate(rows.items()):
            values = [found[column] for found in seeds if column in found]
            color = "C7" if name in (*REFERENCES, SUPERVISED) else "C3" if name.startswith("DSSL") else "C0"
            panel.plot(values, [y] * len(values), "o", color=color, alpha=0.7)
        panel.set(xlabel=f"{column} top-1, %", yticks=range(len(rows)), yticklabels=list(rows))
        panel.grid(alpha=0.3)
        panel.label_outer()
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's shards; without it nothing is trained")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of methods_cpu.json, all that was found, and methods_cpu.png")
    parser.add_argument("--trials", action="store_true", help="train what papers say matters, in place of the methods")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names of those to train and to print; all by default")
    arguments = parser.parse_args()
    known = TRIALS if arguments.trials else ROWS
    names: list[str] = arguments.rows or list(known)
    if unknown := set(names).difference(known):
        parser.error(f"there is no {' and no '.join(sorted(unknown))}; choose of {', '.join(known)}")
    if arguments.data:
        complete(arguments.runs, names, arguments.seeds, str(arguments.data))
        if not (arguments.trials or arguments.rows):
            complete_references(arguments.runs, arguments.seeds, str(arguments.data))
    rows = collect(arguments.runs, [*REFERENCES, *names, SUPERVISED], arguments.seeds)
    for columns in TABLES:
        print("\n".join([*table(rows, columns), ""]))
    if arguments.out:
        name = "methods_trials_cpu" if arguments.trials else "methods_cpu"
        (arguments.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        if not arguments.trials:
            plot(rows, arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
