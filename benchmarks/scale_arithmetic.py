"""What a step of SCE with ResNet-50 costs on many GPUs, on paper: the table of docs/design/scale.md.

python benchmarks/scale_arithmetic.py                    # a second; needs no GPU
python benchmarks/scale_arithmetic.py --network-us 25    # short messages between machines as in NCCL's own model

Sources of the constants are on that page.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

# Of one H100 at 256 images, and of Python that launches a step's kernels (benchmarks/step_arithmetic.py).
FLOOR_S, LAUNCHES_S = 52.4e-3 / 256, 8.7e-3
# In SyncBatchNorm's recipe both branches see both views: twice the work, the launches (about) and the keys.
SYNC_VIEWS = 2
# Parameters that are trained: encoder, projector and, in the second recipe, predictor.
ENCODER, PROJECTOR, PREDICTOR = 23_508_032, 8_921_088, 2_105_344
VIEW_BYTES, KEY_BYTES = 3 * 224 * 224 * 4, 256 * 4
# Bytes a second of NCCL on 8 GPUs of a machine: all-reduce in NVSwitch, and a ring; and of a network card, one a GPU.
NVLS, RING, CARD = 480e9, 370e9, 47e9
# Of a message that is too short for its bytes to matter: within a machine, and over the network.
MACHINE_S, NETWORK_S = 13e-6, 70e-6
BATCH_NORMS, PREDICTOR_BATCH_NORMS = 53 + 3, 1  # of encoder and projector; of the predictor


class Cost(NamedTuple):
    """Seconds of a step: at the floor, of launches, of gradients, of images and keys, of short messages."""

    floor: float
    launches: float
    gradients: float
    images: float
    keys: float
    messages: float

    @property
    def total(self) -> float:
        """What is left where gradients travel behind the backward pass, of which they take at most a half."""
        compute = max(self.floor, self.launches)
        return compute + max(0.0, self.gradients - compute / 2) + self.images + self.keys + self.messages


def cost(gpus: int, batch: int, *, sync: bool, network_s: float) -> Cost:
    """The cost of a step of a batch over all GPUs, with shuffle-BN or with SyncBatchNorm."""
    views = SYNC_VIEWS if sync else 1
    ring = RING if gpus == 8 else min(RING, 8 * CARD)
    parameters = ENCODER + PROJECTOR + PREDICTOR * sync
    reduced = 2 * (gpus - 1) / gpus * 4 * parameters / (NVLS if gpus == 8 else ring)
    # Shuffle-BN sends each image of the momentum branch to another GPU, and its key back. Keys are gathered.
    exchanged = batch / gpus * (VIEW_BYTES + KEY_BYTES) * (not sync)
    # Each sends the number of rows first: two messages for the keys of a view, four for its shuffle.
    # SyncBatchNorm, for each view: forward in both branches and backward in the online one, which has the predictor.
    statistics = 3 * BATCH_NORMS + 2 * PREDICTOR_BATCH_NORMS
    messages = views * (2 + (statistics if sync else 4))
    return Cost(
        floor=views * FLOOR_S * batch / gpus,
        launches=views * LAUNCHES_S,
        gradients=reduced,
        images=(gpus - 1) / gpus * exchanged / (RING if gpus == 8 else CARD),
        keys=(gpus - 1) / gpus * views * batch * KEY_BYTES / ring,
        messages=messages * (MACHINE_S if gpus == 8 else network_s),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network-us", type=float, metavar="US", default=1e6 * NETWORK_S, help="of a short message between machines"
    )
    network_s = 1e-6 * parser.parse_args(arguments).network_us
    columns = ("recipe, batch", "GPUs", "images each", *Cost._fields, "step", "speed-up")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, batch, sync in (
        ("`imagenet`, 512", 512, False),
        ("the same, 4,096", 4096, False),
        ("`imagenet_large_batch`, 4,096", 4096, True),
    ):
        first = cost(8, batch, sync=sync, network_s=network_s).total
        for gpus in (8, 64, 512):
            of = cost(gpus, batch, sync=sync, network_s=network_s)
            times = " | ".join(f"{1e3 * value:.1f}" for value in (*of, of.total))
            print(f"| {name} | {gpus} | {batch // gpus} | {times} | {first / of.total:.1f} |")


if __name__ == "__main__":
    main()
