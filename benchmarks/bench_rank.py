"""Do measures without labels put runs in the order of a linear classifier? Twelve settings of SCE on CIFAR-10.

python benchmarks/bench_rank.py --data cifar10 --runs runs/rank    # trains and evaluates what RUNS lacks
python benchmarks/bench_rank.py --runs runs/rank --out benchmarks/results    # writes rank_cpu.json, .md and .png
python benchmarks/bench_rank.py --quick

CIFAR10 holds train-*.parquet and test-*.parquet. Each setting is recipe `cifar10_cpu` at a third of its length with one
or two values changed, some of them bad on purpose. The classifier is `ssl-core eval linear --protocol cached --lr 0.3`,
and the measures are those of `ssl-core rank`, on test images. A run that was stopped goes on, and settings that RUNS
lacks are taken from OUT's rank_cpu.json. Two calls with `OMP_NUM_THREADS=1` and other `--settings` use two cores
better than one.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from scipy.stats import kendalltau, spearmanr

from ssl_core.evaluate import rank
from ssl_core.evaluate.rank import MEASURES

_JITTER = {"color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
_COLORS = [_JITTER, {"grayscale": {"prob": 0.2}}, {"horizontal_flip": {}}]


def views(*ops: dict[str, Any]) -> str:
    """The recipe's views, of which the second has these ops."""
    online = {"augmentation": list(ops), "size": 32}
    return f"--views={json.dumps([{'augmentation': 'weak', 'size': 32}, online])}"


# Setting -> changes of recipe cifar10_cpu.
SETTINGS: dict[str, list[str]] = {
    "recipe": [],
    "lr 0.003": ["--optim.lr=0.003"],
    "lr 0.03": ["--optim.lr=0.03"],
    "lr 0.3": ["--optim.lr=0.3"],
    "lr 1": ["--optim.lr=1"],
    "temperature 0.2": ["--method.temperature=0.2"],
    "temperature 1": ["--method.temperature=1"],
    "target 0.03": ["--method.target_temperature=0.03"],
    "target 0.5": ["--method.target_temperature=0.5"],
    "no colors": [views({"random_resized_crop": {"scale": [0.2, 1.0]}}, {"horizontal_flip": {}})],
    "crops of 80 %": [views({"random_resized_crop": {"scale": [0.8, 1.0]}}, *_COLORS)],
    "no crops": [views({"center_crop": {}}, *_COLORS)],
}
EPOCHS = 3  # of 9
LAYERS = ("projection", "backbone")


def folder_of(runs: Path, setting: str) -> Path:
    return runs / setting.replace(" %", "").replace(" ", "-")


def run(arguments: list[str], log: Path) -> None:
    """Runs a command of this environment to its end."""
    with log.open("a") as stream:
        command = [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]
        if subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode:
            raise SystemExit(f"failed, see {log}: {' '.join(command)}")


def complete(runs: Path, settings: list[str], source: str, shorter: list[str]) -> None:
    """Trains and evaluates each setting that RUNS lacks."""
    runs.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        folder = folder_of(runs, setting)
        if (folder / "linear.json").is_file():
            continue
        print(setting, flush=True)
        # The precision by measurement, as the recipe has it, is not the same for all settings on a busy machine.
        third = [f"--data.source={source}", f"--train.epochs={EPOCHS}", "--train.precision=bfloat16", "--report=false"]
        log = folder.with_name(f"{folder.name}.log")
        run(["ssl-sce-train", "--config=cifar10_cpu", *third, *SETTINGS[setting], *shorter, f"--out={folder}"], log)
        run(["ssl-core", "eval", "linear", str(folder), "--protocol=cached", "--lr=0.3"], log)


def collect(runs: Path, settings: list[str]) -> dict[str, dict[str, float]]:
    """Linear accuracy in percent, and every measure of both layers such as ``projection rankme``, by setting."""
    there = [setting for setting in settings if (folder_of(runs, setting) / "linear.json").is_file()]
    rows: dict[str, dict[str, float]] = {}
    if not there:
        return rows
    found = rank([str(folder_of(runs, setting)) for setting in there], out=str(runs))["runs"]
    for setting in there:
        folder = folder_of(runs, setting)
        measures = found[str(folder)]
        rows[setting] = {"linear": 100 * json.loads((folder / "linear.json").read_text())["last"]}
        rows[setting] |= {f"{layer} {name}": measures[layer][name] for layer in LAYERS for name in MEASURES}
    return rows


def goodness(name: str, value: float) -> float:
    """A measure, or its closeness to its best value: the higher the better."""
    return -abs(value - 1) if name.endswith("alpha_req") else value


def correlations(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Rank correlation of each measure with linear accuracy over the settings, with its p-value."""
    linear = [row["linear"] for row in rows.values()]
    found = {}
    for column in (f"{layer} {name}" for layer in LAYERS for name in MEASURES):
        values = [goodness(column, row[column]) for row in rows.values()]
        rho, tau = spearmanr(values, linear), kendalltau(values, linear)
        best = max(rows, key=lambda setting, column=column: goodness(column, rows[setting][column]))
        found[column] = {
            "spearman": float(rho.statistic),
            "spearman_p": float(rho.pvalue),
            "kendall": float(tau.statistic),
            "kendall_p": float(tau.pvalue),
            "linear_of_chosen": rows[best]["linear"],
        }
    return found


def tables(rows: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> str:
    """Both tables: settings from best to worst, and correlations; the layer that a paper takes is in bold."""
    columns = [f"{layer} {name}" for name, measure in MEASURES.items() for layer in LAYERS if layer == measure.layer]
    titles = [f"{measure.title} ({measure.layer})" for measure in MEASURES.values()]
    lines = [f"| setting | linear | {' | '.join(titles)} |", f"|{'---|' * (2 + len(titles))}"]
    for setting, row in sorted(rows.items(), key=lambda item: -item[1]["linear"]):
        lines.append(f"| {setting} | {row['linear']:.2f} | {' | '.join(f'{row[c]:.4g}' for c in columns)} |")
    best = max(row["linear"] for row in rows.values())
    lines += ["", f"The best setting has {best:.2f}.", ""]
    lines += [
        "| measure | layer | Spearman (p) | Kendall (p) | linear of the setting that it chooses |",
        f"|{'---|' * 5}",
    ]
    for column, values in found.items():
        layer, name = column.split()
        bold = "**" if MEASURES[name].layer == layer else ""
        cells = [f"{values[kind]:+.2f} ({values[f'{kind}_p']:.2g})" for kind in ("spearman", "kendall")]
        lines.append(
            f"| {bold}{MEASURES[name].title}{bold} | {layer} | {' | '.join(cells)} | {values['linear_of_chosen']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, dict[str, float]], found: dict[str, dict[str, float]], file: Path) -> None:
    """Linear accuracy against each measure of its paper's layer."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(MEASURES), figsize=(13, 3.6), sharey=True, layout="constrained")
    for panel, (name, measure) in zip(panels, MEASURES.items(), strict=True):
        column = f"{measure.layer} {name}"
        shown = {setting: row for setting, row in rows.items() if math.isfinite(row[column])}
        for number, (setting, row) in enumerate(shown.items()):
            panel.plot(row[column], row["linear"], "o^s"[number // 10], color=f"C{number % 10}", label=setting)
        rho = found[column]["spearman"]
        panel.set(xlabel=f"{measure.title}, {measure.layer} ({measure.best})", title=f"Spearman {rho:+.2f}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("linear top-1, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's shards; without it nothing is trained")
    parser.add_argument("--runs", type=Path, help="folder of the runs")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="folder of rank_cpu.json, rank_cpu.md and rank_cpu.png")
    parser.add_argument("--quick", action="store_true", help="three settings, four steps each, on the embedded digits")
    options = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    print(machine)
    with tempfile.TemporaryDirectory() as temporary:
        runs, settings = options.runs or Path(temporary) / "rank", options.settings
        if options.quick:
            settings = ["recipe", "lr 1", "no crops"]
            shorter = ["--data.channels=3", "--train.steps=4", "--optim.warmup_epochs=0", "--evaluate.knn_every=0"]
            complete(runs, settings, "digits", shorter)
        elif options.data:
            complete(runs, settings, str(options.data), [])
        rows = collect(runs, settings)
        before = options.out / "rank_cpu.json" if options.out else None
        if before and before.is_file():  # what another machine measured
            rows = json.loads(before.read_text())["settings"] | rows
        if len(rows) < 3:
            return
        found = correlations(rows)
        print(f"\n{tables(rows, found)}")
        if options.out:
            content = {"machine": machine.splitlines(), "settings": rows, "correlations": found}
            (options.out / "rank_cpu.json").write_text(json.dumps(content, indent=1) + "\n")
            (options.out / "rank_cpu.md").write_text(tables(rows, found))
            plot(rows, found, options.out / "rank_cpu.png")


if __name__ == "__main__":
    main()
