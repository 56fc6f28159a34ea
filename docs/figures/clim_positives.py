"""Plots clim_positives.png: images, the positives that each of CLIM's selections gives them, and mixtures with them.

python docs/figures/clim_positives.py RUN    # a run directory of ssl-clim-train on labelled images

Prints how many of the positives have their image's label, by selection.
"""

import argparse
from pathlib import Path
from typing import get_args

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_clim import train
from ssl_clim.mixing import cutmix, draw_mixtures
from ssl_clim.neighbours import Positives, Selection, find_positives, label_purity, load_faiss, num_clusters
from ssl_core.backbone import load_card
from ssl_core.config import parse_config
from ssl_core.data import ImageSource, open_source
from ssl_core.evaluate import evaluation_view, extract_features
from ssl_core.nn import make_encoder
from ssl_core.train import load_checkpoint
from ssl_core.views import make_view_specs, render

ANCHORS = 5
TITLES = {
    "random": "random",
    "knn": "knn: the 10 nearest",
    "kmeans": "kmeans: of the cluster",
    "knn_kmeans": "knn_kmeans: of 40 nearest, in the cluster",
    "center_wise": "center_wise: of those, no farther from the center",
}


def load(run: Path) -> tuple[ImageSource, np.ndarray, np.ndarray, int]:
    """The training images, their embeddings by the momentum branch, their labels, and the views' size."""
    recipes = Path(train.__file__).parent / "recipes"
    arguments = ["--config", str(run / "config.yaml")]
    config = parse_config(train.Config, arguments, prog="clim_positives", description="", recipes=recipes)
    card, source = load_card(run / "backbone.json"), open_source(config.data)
    encoder = make_encoder(config.encoder, channels=card.channels, image_size=card.image_size)
    method = train.make_method(config, encoder, card.num_features, make_view_specs(config.views))
    method.load_state_dict(load_checkpoint(run / "checkpoints" / "last.pt")["method"])
    branch = nn.Sequential(method.momentum_branch.encoder, method.momentum_branch.projector)
    found = extract_features(
        branch, source, evaluation_view(card.image_size), mean=card.mean, std=card.std, progress="embeddings"
    )
    return source, F.normalize(found.features, dim=1).numpy(), found.labels.numpy(), card.image_size


def of_rule(positives: Positives, labels: np.ndarray) -> float:
    """The purity of the positives that the rule chose, without those that fill the rows."""
    is_chosen = np.arange(positives.table.shape[1]) < positives.chosen[:, None]
    same = labels[positives.table] == labels[:, None]
    return float(same[is_chosen].mean()) if is_chosen.any() else float("nan")


def pictures(source: ImageSource, table: np.ndarray, size: int) -> Tensor:
    """(rows columns c s s) the images of a table of numbers, as the encoder sees them in evaluation."""
    nothing_drawn = torch.empty(0, dtype=torch.float64)
    views = [render(source.image(index), nothing_drawn, evaluation_view(size))[0] for index in table.ravel().tolist()]
    return torch.stack(views).unflatten(0, table.shape)


def sheet_of(images: Tensor) -> np.ndarray:
    """Rows and columns of images on one sheet, two white pixels between them."""
    rows, columns = images.shape[:2]
    framed = F.pad(images.flatten(0, 1), (1, 1, 1, 1), value=1.0).unflatten(0, (rows, columns))
    return torch.cat(list(torch.cat(list(framed.unbind(1)), dim=3)), dim=1)[:3].permute(1, 2, 0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    arguments = parser.parse_args()
    source, features, labels, size = load(arguments.run)
    faiss = load_faiss(torch.device("cpu"))
    # One image of each of the first classes, whichever comes first.
    anchors = np.array([int(np.flatnonzero(labels == label)[0]) for label in range(ANCHORS)])

    found = {}
    print(f"{'selection':12} {'purity of 10':>12} {'chosen by the rule':>18} {'purity of those':>15}")
    for selection in get_args(Selection):
        positives, _ = find_positives(features, selection, faiss, clusters=num_clusters(len(features)), seed=0)
        found[selection] = positives.table
        purity, chosen = label_purity(positives.table, labels), positives.chosen.mean()
        print(f"{selection:12} {100 * purity:11.1f}% {chosen:18.2f} {100 * of_rule(positives, labels):14.1f}%")

    partners = found["center_wise"][anchors]
    boxes = draw_mixtures(0, 0, torch.arange(partners.size), alpha=2.0)
    own, other = (
        pictures(source, rows, size) for rows in (np.broadcast_to(anchors[:, None], partners.shape), partners)
    )
    mixed, kept = cutmix(own.flatten(0, 1), other.flatten(0, 1), boxes)

    figure, axes = plt.subplots(2, 3, figsize=(13, 4.6))
    for panel, (selection, title) in zip(axes.flat, TITLES.items(), strict=False):
        panel.imshow(sheet_of(pictures(source, np.c_[anchors, found[selection][anchors]], size)))
        panel.set_title(title, fontsize=10)
    own_first = torch.cat([own[:, :1], mixed.unflatten(0, partners.shape)], dim=1)
    axes.flat[5].imshow(sheet_of(own_first))
    axes.flat[5].set_title(f"mixed with those; {kept.mean():.0%} is the image's own", fontsize=10)
    for panel in axes.flat:
        panel.axvline(size + 1.5, color="black", linewidth=2)  # between the image and what it is given
    for panel in axes.flat:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=100)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
