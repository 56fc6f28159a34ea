"""Which images to label: accuracy on CIFAR-10 by the labels that each rule of ``ssl-core select`` chooses.

python benchmarks/bench_select.py --run runs/sce --data cifar10 --out benchmarks/results

CIFAR10 holds train-*.parquet and test-*.parquet. A logistic regression learns from the chosen labels on the frozen
features of the run, with the settings of `ssl-core compare`; five seeds of each rule.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe_machine

from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import Features, k_center, load_subject, typiclust
from ssl_core.evaluate.few_labels import LIMITS, PENALTY, standardized
from ssl_core.evaluate.logistic import fit_classifier
from ssl_core.files import write_json
from ssl_core.philox import permutation

COUNTS = [10, 50, 100, 500]
SEEDS = 5
RULES = {
    "TypiClust": typiclust,
    "k-center greedy": k_center,
    "random": lambda features, count, seed: permutation(seed, (0, 0), len(features))[:count].tolist(),
}
COLORS = {"TypiClust": "#3f90da", "k-center greedy": "#bd1f01", "random": "#717581"}


def accuracy(train: Features, test: Features, chosen: list[int]) -> float:
    """Top-1 of a classifier of the chosen labels."""
    fit = fit_classifier(train.features[chosen], train.labels[chosen], 10, PENALTY, limits=LIMITS)
    return (fit.scores(test.features).argmax(dim=1) == test.labels).double().mean().item()


def measure(train: Features, test: Features) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Accuracies, numbers of classes and seconds by rule and number of labels."""
    scaled = standardized(train, test)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, rule in RULES.items():
        results[name] = {}
        for count in COUNTS:
            found: dict[str, list[float]] = {"top1": [], "classes": [], "seconds": []}
            for seed in range(SEEDS):
                start = time.perf_counter()
                chosen = rule(train.features, count, seed=seed)
                found["seconds"].append(time.perf_counter() - start)
                found["top1"].append(accuracy(*scaled, chosen))
                found["classes"].append(len(train.labels[chosen].unique()))
            results[name][str(count)] = found
            print(f"{name}, {count} labels: {spread(found['top1'])}", flush=True)
    return results


def spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def draw(results: dict, path: Path, title: str) -> None:
    """Plot accuracy against the number of labels, with the range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure((6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, found in results.items():
        tops = [[100 * value for value in found[str(count)]["top1"]] for count in COUNTS]
        middle = [statistics.mean(values) for values in tops]
        axes.fill_between(COUNTS, [min(v) for v in tops], [max(v) for v in tops], color=COLORS[name], alpha=0.2, lw=0)
        axes.plot(COUNTS, middle, "o-", color=COLORS[name], label=name)
    axes.set(xscale="log", xlabel="labels", ylabel="top-1 on CIFAR-10, %", title=title)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run directory")
    parser.add_argument("--data", required=True, help="the folder of CIFAR-10's parquet files")
    parser.add_argument("--out", required=True, help="the folder of select_cpu.json and .png")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    data = DataConfig(source=arguments.data, workers=0)
    subject = load_subject(arguments.run, data=data)
    train, test = (subject.extract(open_source(data, split=split)) for split in ("train", "test"))
    results = measure(train, test)
    full = f"{subject.card.recipe.removeprefix('ssl-').upper()}, {train.features.shape[1]} features"
    write_json(out / "select_cpu.json", results)
    draw(results, out / "select_cpu.png", f"{full}; mean and range of {SEEDS} seeds")
    print(f"\n{describe_machine(torch.device('cpu'))}\n\n{full}; mean (range) of {SEEDS} seeds\n")
    print(f"| rule | {' | '.join(f'{count} labels' for count in COUNTS)} |\n|{'---|' * (len(COUNTS) + 1)}")
    for name, found in results.items():
        print(f"| {name} | {' | '.join(spread(found[str(count)]['top1']) for count in COUNTS)} |")
    for what in ("classes", "seconds"):
        print(f"\n{what}, mean\n")
        for name, found in results.items():
            means = [f"{statistics.mean(found[str(count)][what]):.1f}" for count in COUNTS]
            print(f"| {name} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
