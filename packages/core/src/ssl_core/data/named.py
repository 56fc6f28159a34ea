"""Data sets that are opened by name: the embedded one, and CIFAR and STL-10 through torchvision's readers."""

from pathlib import Path

import torch

from ssl_core.data.digits import draw_digits
from ssl_core.data.source import MemoryImages

# Read through torchvision or embedded; the other names are folders in a known layout.
IN_MEMORY_NAMES = ("digits", "cifar10", "cifar100", "stl10")


def digit_images(split: str) -> MemoryImages:
    """The embedded set."""
    images, labels = draw_digits(train=split != "test")
    return MemoryImages("digits", images, labels, tuple("0123456789"))


def torchvision_images(name: str, root: Path, split: str, *, download: bool, stl10_split: str) -> MemoryImages:
    """CIFAR-10, CIFAR-100 or STL-10, decoded.

    Args:
        name: name of the set: ``cifar10``, ``cifar100`` or ``stl10``.
        root: folder that holds the set as torchvision lays it out.
        split: name of the split: ``train``, ``test`` or ``labelled``.
        download: permission to fetch the set if it is not there.
        stl10_split: part of STL-10 that its split ``train`` stands for.

    Raises:
        FileNotFoundError: if the set is not there and not to be fetched.
    """
    from torchvision.datasets import CIFAR10, CIFAR100, STL10  # seconds of import that no other source needs

    try:
        if name == "stl10":
            part = {"train": stl10_split, "labelled": "train", "test": "test"}[split]
            stl10 = STL10(root, split=part, download=download)
            images, labels = torch.from_numpy(stl10.data), torch.as_tensor(stl10.labels)
            classes = stl10.classes
        else:
            cifar = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](root, train=split != "test", download=download)
            images, labels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2), torch.tensor(cifar.targets)
            classes = cifar.classes
    except RuntimeError as error:  # torchvision's way of saying that files are missing or damaged
        raise FileNotFoundError(
            f"{name} is not in data.root {str(root)!r} as torchvision lays it out; "
            "point data.root at it, or set data.download true"
        ) from error
    return MemoryImages(name, images, labels.long(), tuple(classes))
