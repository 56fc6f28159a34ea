import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.detect.annotations import Annotations


@pytest.fixture
def annotated() -> Callable[..., Annotations]:
    """Annotations from rows (image, class, x1, y1, x2, y2), by image; the rest of the fields as keywords."""

    def make(rows, *, classes=("cat",), num_images=None, size=(96, 96), **fields) -> Annotations:
        table = np.array(rows, float).reshape(-1, 6)
        num_images = num_images or int(table[:, 0].max()) + 1
        boxes = table[:, 2:]
        defaults = {
            "is_crowd": np.zeros(len(table), bool),
            "is_difficult": np.zeros(len(table), bool),
            "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        }
        return Annotations(
            name="made",
            classes=tuple(classes),
            paths=np.array([b"%d.png" % index for index in range(num_images)]),
            sizes=np.tile(np.array(size), (num_images, 1)),
            image=table[:, 0].astype(np.int64),
            labels=table[:, 1].astype(np.int64),
            boxes=boxes,
            **(defaults | fields),
        )

    return make


# Color of each class in the made sets, whose objects are rectangles on black.
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIDE = 96


def draw(path: Path, things: Sequence[tuple[int, tuple[int, int, int, int]]]) -> None:
    """An image of 96 x 96 with a rectangle of each (class, box), by the edges of the box."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for label, (x1, y1, x2, y2) in things:
        pixels[y1:y2, x1:x2] = COLORS[label]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


VOC_OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>
  </object>"""


@pytest.fixture
def voc_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in VOC's layout: for each part a mapping from images to (class, name, edges, difficult)."""

    def write(parts: Mapping[str, Mapping[str, Sequence[tuple]]], folder: Path = tmp_path / "set") -> Path:
        for each in ("Annotations", "ImageSets/Main"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        for part, images in parts.items():
            (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in images))
            for name, things in images.items():
                draw(folder / "JPEGImages" / f"{name}.png", [(label, box) for label, _, box, _ in things])
                objects = "".join(
                    VOC_OBJECT.format(name=word, difficult=int(difficult), x1=x1 + 1, y1=y1 + 1, x2=x2, y2=y2)
                    for _, word, (x1, y1, x2, y2), difficult in things
                )
                size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
                (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>\n")
        return folder

    return write


@pytest.fixture
def coco_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in COCO's layout, or LVIS's: for each part a list of images, each of (class, edges)."""

    def write(
        parts: Mapping[str, Sequence[Sequence[tuple]]],
        classes: Sequence[str] = ("red", "green", "blue"),
        *,
        frequency: str | None = None,
        change: Callable[[dict], object] = lambda content: None,
        folder: Path = tmp_path / "set",
    ) -> Path:
        for part, images in parts.items():
            content = {"images": [], "annotations": [], "categories": []}
            # Ids as in the files: with gaps, and not in order.
            for label, name in enumerate(classes):
                content["categories"].append({"id": 10 * (len(classes) - label), "name": name})
                if frequency:
                    content["categories"][-1]["frequency"] = frequency[label]
            for index, things in enumerate(images):
                image = {"id": 7 * (len(images) - index), "height": SIDE, "width": SIDE, "file_name": f"{index}.png"}
                if frequency:
                    image |= {
                        "file_name": f"COCO_{part.removesuffix('2017')}2014_{index}.png",
                        "neg_category_ids": [10],
                        "not_exhaustive_category_ids": [20],
                    }
                content["images"].append(image)
                draw(folder / part / f"{index}.png", things)
                for label, (x1, y1, x2, y2) in things:
                    content["annotations"].append(
                        {
                            "id": len(content["annotations"]) + 1,
                            "image_id": image["id"],
                            "category_id": 10 * (len(classes) - label),
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": (x2 - x1) * (y2 - y1) - 1,
                            "iscrowd": 0,
                            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                        }
                    )
            change(content)
            name = f"lvis_v0.5_{part.removesuffix('2017')}" if frequency else f"instances_{part}"
            (folder / "annotations").mkdir(parents=True, exist_ok=True)
            (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
        return folder

    return write
