"""A made VOC2007 in its own layout."""

import numpy as np
from PIL import Image

from ssl_core.data import DataConfig
from ssl_core.data.voc import VOC_CLASSES

SIZES = {"train": 16, "val": 12, "test": 8}


def write_voc(root, values_of=lambda name, number: 1 if VOC_CLASSES.index(name) % 4 == number % 4 else -1):
    """Images of four colors, of which each stands for every fourth class, and lists that say so."""
    folder = root / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    generator = np.random.default_rng(0)
    first = 1
    for part, size in SIZES.items():
        numbers = range(first, first + size)
        first += size
        for name in VOC_CLASSES:
            lines = [f"{number:06d} {values_of(name, number):2d}\n" for number in numbers]
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text("".join(lines))
        for number in numbers:
            color = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220), (200, 200, 200)])[number % 4]
            pixels = np.clip(color + generator.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{number:06d}.jpg")
    return DataConfig(root=str(root), workers=0)
