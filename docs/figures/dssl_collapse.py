"""Plots dssl_collapse.png: the spread of the embeddings and the kNN of runs of ssl-dssl, from their logs.

ssl-dssl-train --config cifar10_cpu --data.source cifar10/train-*.parquet --out runs/dssl
ssl-dssl-train --config cifar10_cpu --data.source cifar10/train-*.parquet --method.naive views --out runs/naive
python docs/figures/dssl_collapse.py DSSL=runs/dssl naive=runs/naive
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from ssl_core.train import read_metrics


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("give runs as label=folder")
    figure, (spread, rank, knn) = plt.subplots(1, 3, figsize=(11, 3.2))
    for argument in sys.argv[1:]:
        label, _, folder = argument.partition("=")
        records = read_metrics(Path(folder))
        steps = [record for record in records if "embedding_std" in record]
        epochs = [record["epoch"] for record in steps]
        even = [record["embedding_std"] / record["embedding_std_even"] for record in steps]
        spread.plot(epochs, even, label=label)
        rank.plot(epochs, [record["effective_rank"] for record in steps], label=label)
        measured = [record for record in records if "knn_top1" in record]
        knn.plot(
            [record["epoch"] for record in measured],
            [100 * record["knn_top1"] for record in measured],
            marker="o",
            markersize=3,
            label=label,
        )
    spread.set(title="std of embeddings / std of even directions", ylim=(0, 1.05))
    rank.set(title="effective rank of a batch's embeddings", ylim=(0, None))
    knn.set(title="kNN top-1, %")
    for axes in (spread, rank, knn):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    knn.legend()
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
