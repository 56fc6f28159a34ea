"""Beside lightly 1.6 on the CPU: speed and memory of whole training loops, and kNN after the same steps, in turns.

pip install "lightly==1.6.*"
python benchmarks/evidence_lightly.py --data cifar10 --runs runs/lightly --out benchmarks/results

CIFAR10 holds train-*.parquet and test-*.parquet. Both sides train the same net, heads, optimizer and schedule on
views of the same distribution, batch 256, bfloat16, channels-last: ours by the command, recipe `evidence_cpu` with a
wider stem; lightly by a loop as in its examples, with its transforms, losses and momentum update. Each run is a process
of its own; both load data in the training process, lightly from decoded arrays. Where others work too, measure one
core, with `OMP_NUM_THREADS=1`.
"""

import argparse
import copy
import importlib.metadata
import io
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import ALIKE, BASES, run
from machine import describe_machine
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn

import ssl_dssl.train
from ssl_core.backbone import load_card, save_backbone
from ssl_core.config import parse_config
from ssl_core.nn import make_encoder
from ssl_core.train import make_optimizer
from ssl_dssl.bases import make_base

WINDOW = 20  # steps of a record of throughput, as in the recipe
# A stem of 64 channels: with the recipe's 16, data and views, where the sides differ, would have more of the time.
NET = [
    "--encoder.options={layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}",
    "--train.precision=bfloat16",
]
NAMES = {name.partition(",")[0]: changes for name, changes in BASES.items()}


def our_arguments(name: str, steps: int, seed: int) -> list[str]:
    return [
        *ALIKE,
        *NET,
        "--method.heavy=none",
        *(["--method.pairs=1"] if name in ("SimSiam", "BYOL") else []),
        *NAMES[name],
        f"--train.steps={steps}",
        f"--seed={seed}",
    ]


class Arrays(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Decoded training images in memory, as torchvision's CIFAR10 has them, and two views of each."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images = [
            np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
            for file in sorted(folder.glob("train-*.parquet"))
            for batch in parquet.ParquetFile(file).iter_batches(256)  # so that the whole file is never in memory
            for row in batch.column(0).to_pylist()
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first, second = self.transform(Image.fromarray(self.images[index]))
        return first, second


def train_lightly(name: str, folder: Path, data: Path, steps: int, seed: int) -> None:
    """A loop as in lightly's examples; writes images a second of each window, and the backbone."""
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import SimCLRTransform

    recipes = Path(ssl_dssl.train.__file__ or "").parent / "recipes"
    config = parse_config(
        ssl_dssl.train.Config, our_arguments(name, steps, seed), prog="lightly", description="", recipes=recipes
    )
    ours = folder.name.partition("-lightly")[0] + "-ours-*"  # of any seed
    card = load_card(min(folder.parent.glob(f"{ours}/backbone.json")))
    torch.manual_seed(seed)
    encoder = make_encoder(config.encoder, channels=3, image_size=card.image_size)
    method = ssl_dssl.train.make_method(config, encoder, card.num_features, config.view_specs())
    online = nn.Sequential(method.encoder, method.projector)
    target = copy.deepcopy(online)
    deactivate_requires_grad(target)
    predictor = method.predictor or nn.Identity()
    base: Any = make_base(config.method.base)
    moving = base.momentum.value if name in ("BYOL", "MoCo v2") else None
    cosine = NegativeCosineSimilarity()
    criterion = {
        "SimSiam": cosine,
        "BYOL": cosine,
        "SimCLR": NTXentLoss(getattr(base, "temperature", 1.0)),
        "MoCo v2": NTXentLoss(getattr(base, "temperature", 1.0), memory_bank_size=(4096, config.projector.out_dim)),
        "Barlow Twins": BarlowTwinsLoss(getattr(base, "off_diagonal_weight", 0.0)),
    }[name]

    def compared(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The pairs whose losses are averaged."""
        if name == "MoCo v2":
            with torch.no_grad():
                key = target(second)
            return [(online(first), key)]
        a, b = online(first), online(second)
        if name in ("SimCLR", "Barlow Twins"):
            return [(a, b)]
        with torch.no_grad():
            c, d = (target(first), target(second)) if name == "BYOL" else (a.detach(), b.detach())
        return [(predictor(a), d), (predictor(b), c)]

    strength = {"cj_strength": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.4, "cj_hue": 0.1}
    transform = SimCLRTransform(
        card.image_size,
        **strength,
        min_scale=0.2,
        gaussian_blur=0.0,
        normalize={"mean": list(card.mean), "std": list(card.std)},
    )
    dataset = Arrays(data, transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=config.train.batch_size, shuffle=True, drop_last=True, num_workers=0
    )
    for module in (online, target, predictor):
        module.to(memory_format=torch.channels_last)
        module.train()
    optimizer = make_optimizer(method, config.optim, batch_size=config.train.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: (1 + math.cos(math.pi * at / steps)) / 2)
    rates: list[float] = []
    done, start = 0, time.perf_counter()
    while done < steps:
        for first, second in loader:
            with torch.autocast("cpu", torch.bfloat16):
                pairs = compared(*(view.to(memory_format=torch.channels_last) for view in (first, second)))
            # Losses are computed in float32, as ours are.
            loss = torch.stack([criterion(one.float(), other.float()) for one, other in pairs]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if moving is not None:
                update_momentum(online, target, moving)
            done += 1
            if done % WINDOW == 0:
                now = time.perf_counter()
                rates.append(WINDOW * config.train.batch_size / (now - start))
                start = now
            if done == steps:
                break
    folder.mkdir(parents=True)
    save_backbone(folder / "backbone.safetensors", method.encoder, card)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"images_per_s": rate}) + "\n" for rate in rates))


def measure(name: str, side: str, folder: Path, data: Path, steps: int, seed: int) -> dict[str, float]:
    """Trains and evaluates one run where it has not been: images a second of the whole loop, peak bytes, kNN."""
    result = folder / "result.json"
    if not result.is_file():
        log = folder.with_suffix(".log")
        if side == "ours":
            alone = ["--evaluate.knn_every=0"]  # the loop and nothing after it
            arguments = [*our_arguments(name, steps, seed), *alone, f"--data.source={data}", f"--out={folder}"]
            peak = run(["ssl-dssl-train", *arguments], log)
        else:
            arguments = ["--data", str(data), "--steps", str(steps), "--lightly", name, str(folder), str(seed)]
            peak = run(["python", __file__, "--runs", str(folder.parent), *arguments], log)
        run(
            [
                "ssl-core",
                "eval",
                "knn",
                str(folder / "backbone.safetensors"),
                f"--data.source={data}",
                f"--out={folder}",
            ],
            log,
        )
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rates = [record["images_per_s"] for record in records if "images_per_s" in record]
        knn = json.loads((folder / "knn.json").read_text())["top1"]
        found = {"images_per_s": statistics.harmonic_mean(rates), "peak_bytes": peak, "knn": knn}
        result.write_text(json.dumps(found))
    return json.loads(result.read_text())


def plot(found: dict[str, dict[str, list[dict[str, float]]]], file: Path) -> None:
    """Images a second of both sides by method: bars of the median, and a dot for each run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 3))
    for offset, (side, color) in zip((-0.2, 0.2), {"ours": "#3f90da", "lightly": "#94a4a2"}.items(), strict=True):
        rates = [[row["images_per_s"] for row in sides[side]] for sides in found.values()]
        places = [number + offset for number in range(len(found))]
        panel.barh(places, list(map(statistics.median, rates)), height=0.36, color=color, label=side)
        for place, values in zip(places, rates, strict=True):
            panel.plot(values, [place] * len(values), ".", color="black")
    panel.set(xlabel="images a second, one CPU thread", yticks=range(len(found)), yticklabels=list(found))
    panel.invert_yaxis()
    panel.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's shards")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; what is there is not run again")
    parser.add_argument("--steps", type=int, default=195, help="of a run; an epoch is 195")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of lightly_cpu.json, all that was found, and lightly_cpu.png")
    parser.add_argument("--lightly", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lightly:
        name, folder, seed = arguments.lightly
        train_lightly(name, Path(folder), arguments.data, arguments.steps, int(seed))
        return
    arguments.runs.mkdir(parents=True, exist_ok=True)
    print(__doc__.partition("\n")[0])
    print(describe_machine(torch.device("cpu")), f"lightly {importlib.metadata.version('lightly')}\n")
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {"ours": [], "lightly": []} for name in NAMES}
    for seed in arguments.seeds:
        for name in NAMES:
            sides = ("ours", "lightly")
            # lightly takes the card of ours, and is second in the first seed; then they change places.
            for side in sides if seed == arguments.seeds[0] else sides[::-1]:
                folder = arguments.runs / f"{name.lower().replace(' ', '-')}-{side}-{seed}"
                values = measure(name, side, folder, arguments.data, arguments.steps, seed)
                found[name][side].append(values)
    print("| method | images/s, ours | lightly | ratio | peak GiB, ours | lightly | kNN, ours | lightly |")
    print("|---|---|---|---|---|---|---|---|")
    for name in NAMES:
        ours, theirs = found[name].values()
        ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(ours, theirs, strict=True)]
        cells = [f"{statistics.median(row['images_per_s'] for row in side):.0f}" for side in (ours, theirs)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells += [f"{max(row['peak_bytes'] for row in side) / 2**30:.2f}" for side in (ours, theirs)]
        for side in (ours, theirs):
            knn = [100 * row["knn"] for row in side]
            cells.append(f"{statistics.mean(knn):.1f} ({min(knn):.1f} to {max(knn):.1f})")
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.out:
        (arguments.out / "lightly_cpu.json").write_text(json.dumps(found, indent=1) + "\n")
        plot(found, arguments.out / "lightly_cpu.png")


if __name__ == "__main__":
    main()
