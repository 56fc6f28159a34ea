import dataclasses

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ssl_core.backbone import BackboneCard, head_layers, make_card_encoder, save_backbone
from ssl_core.config import to_dict
from ssl_core.data import DataConfig, MemoryImages
from ssl_core.data.voc import VOC_CLASSES
from ssl_core.nn import mlp_head
from ssl_core.train import save_checkpoint

CARD = BackboneCard(
    architecture="resnet18",
    channels=3,
    image_size=16,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    num_features=8,
    stem="small",
    options={"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]},
)


def toy_images(labels, *, seed=0, size=16, channels=3):
    """Noise whose mean brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (len(labels), channels, size, size), generator=generator)
    return (noise + 60 * torch.tensor(labels)[:, None, None, None]).byte()


@pytest.fixture
def toy_source():
    def make(labels, *, classes=("dark", "gray", "bright"), **options):
        return MemoryImages("toy", toy_images(labels, **options), torch.tensor(labels), classes)

    return make


@pytest.fixture
def card():
    return CARD


@pytest.fixture
def run(tmp_path):
    """A run directory as training leaves it, on a folder of images with a test split."""
    images = tmp_path / "images"
    for split, seed, count in (("train", 1, 5), ("val", 2, 3)):
        for label, name in enumerate(("dark", "gray", "bright")):
            folder = images / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(toy_images([label] * count, seed=10 * seed + label)):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.manual_seed(3)
    method = nn.ModuleDict({"encoder": make_card_encoder(CARD), "projector": mlp_head(8, 8, 4)})
    method["projector"](method["encoder"](torch.randn(16, 3, 16, 16)))  # running statistics of its own
    card = dataclasses.replace(CARD, projector=head_layers(method["projector"]), recipe="toy")
    save_backbone(folder / "backbone.safetensors", make_card_encoder(CARD), card)  # not the checkpoint's weights
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    save_checkpoint(
        folder / "checkpoints" / "last.pt", method=method, optimizer=optimizer, batches={}, step=1, config={}, data={}
    )
    data = to_dict(DataConfig(source=str(images), workers=0))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "method": {"unknown": "to core"}}))
    return folder


@pytest.fixture
def method(run):
    """Encoder and projector of the run's checkpoint, in eval mode."""
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["method"]
    method = nn.ModuleDict({"encoder": make_card_encoder(CARD), "projector": mlp_head(8, 8, 4)})
    method.load_state_dict(state)
    return method.eval()


@pytest.fixture
def root(tmp_path):
    """A folder with three sets in their own layouts, of images whose brightness tells a class."""

    def write(name, *lines):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))

    def save(name, level, seed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(60, size=(16, 16, 3)) + 60 * level
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)

    for part, first in (("trainval", 0), ("test", 100)):
        numbers = range(first, first + 12)
        write(f"oxford-iiit-pet/annotations/{part}.txt", *(f"breed{n % 3}_{n} {1 + n % 3} 1 1" for n in numbers))
        for n in numbers:
            save(f"oxford-iiit-pet/images/breed{n % 3}_{n}.jpg", n % 3, n)
    for part, first in (("train", 0), ("val", 6), ("test", 12)):
        names = [f"{('dotted', 'banded')[n % 2]}/{n}.jpg" for n in range(first, first + 6)]
        write(f"dtd/labels/{part}1.txt", *names)
        for n, name in enumerate(names, start=first):
            save(f"dtd/images/{name}", n % 2, n)
    for part, first in (("train", 0), ("val", 10), ("test", 20)):
        numbers = range(first, first + 10)
        for number, name in enumerate(VOC_CLASSES):
            # Of four classes, by level, so that each image shows one or none; some of the others are difficult.
            values = [1 if n % 5 == number else 0 if number == n % 7 else -1 for n in numbers]
            lines = [f"{n:06d} {value:2d}" for n, value in zip(numbers, values, strict=True)]
            write(f"VOCdevkit/VOC2007/ImageSets/Main/{name}_{part}.txt", *lines)
        for n in numbers:
            save(f"VOCdevkit/VOC2007/JPEGImages/{n:06d}.jpg", n % 5 / 2, n)
    return tmp_path
