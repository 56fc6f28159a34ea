"""The objects that a detector finds in a test set, and a picture of some of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssl_core import distributed
from ssl_core.data.files import FileImages
from ssl_core.detect.annotations import Annotations
from ssl_core.detect.data import boxes_in_image, evaluation_batches
from ssl_core.detect.metrics import Detections
from ssl_core.detect.model import Detector, paste_masks
from ssl_core.detect.segments import encode_masks
from ssl_core.files import write_atomically
from ssl_core.progress import progress_bar
from ssl_core.views.images import to_unit

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#ffe119", "#469990")


def detect(
    detector: Detector,
    annotations: Annotations,
    *,
    sides: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    workers: int = 0,
    progress: bool = False,
) -> Detections:
    """The objects in all images, by image and falling score; of several processes each looks at a share.

    Args:
        detector: detector on its device.
        annotations: images.
        sides: length of the short side of an image in pixels, and largest length of its long side.
        mean: mean of each channel, subtracted from pixels in [0, 1].
        std: standard deviation of each channel, by which pixels are divided.
        device: device of the detector.
        workers: number of processes that read images.
        progress: whether a bar is shown.

    Raises:
        BrokenImageError: for an image that cannot be read.
    """
    parts: list[tuple[Any, ...]] = []
    # One image at a time, as in the reference: nothing depends on which others it would be padded with.
    batches = evaluation_batches(
        annotations,
        mean=mean,
        std=std,
        short_side=sides[0],
        max_size=sides[1],
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    number = len(range(distributed.rank(), len(annotations), distributed.world_size()))
    with progress_bar(number, "images", disable=not (progress and distributed.is_main())) as bar:
        for batch in batches:
            pixels, sizes, _ = batch.views
            [found] = detector.predict(pixels.to(device), sizes)
            [image] = batch.index.tolist()
            height, width = annotations.sizes[image].tolist()
            places = boxes_in_image(found.boxes, tuple(sizes[0].tolist()), (height, width))
            runs = []
            if found.masks is not None:
                runs = encode_masks(paste_masks(found.masks, places, (height, width)).cpu().numpy())
            values = (each.cpu().numpy() for each in (found.labels, places, found.scores))
            parts.append((np.full(len(places), image), *values, runs))
            bar.update()
    gathered = sorted((part for process in distributed.gather_objects(parts) for part in process), key=_first_image)
    images, labels, boxes, scores = [np.concatenate(column) for column in list(zip(*gathered, strict=True))[:4]]
    masks = [run for *_, runs in gathered for run in runs] if detector.config.masks else None
    return Detections(images, labels, boxes, scores, masks)


def _first_image(part: tuple[Any, ...]) -> int:
    return int(part[0][0]) if len(part[0]) else -1


def results(detections: Detections, annotations: Annotations) -> list[dict[str, Any]]:
    """Detections as a file of COCO's results, by the set's own numbers; without them, by file and class names."""
    ids: Sequence[int | str] = annotations.image_ids or [Path(path.decode()).name for path in annotations.paths]
    categories: Sequence[int | str] = annotations.category_ids or annotations.classes
    rows = [
        {
            "image_id": ids[image],
            "category_id": categories[label],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for image, label, (x1, y1, x2, y2), score in zip(
            detections.image.tolist(),
            detections.labels.tolist(),
            detections.boxes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    for row, run in zip(rows, detections.masks or (), strict=False):
        row["segmentation"] = run | {"counts": run["counts"].decode()}
    return rows


def draw_detections(
    path: Path,
    annotations: Annotations,
    detections: Detections,
    *,
    number: int = 8,
    score: float = 0.5,
    height: int = 360,
) -> None:
    """Write a PNG of some images, the first and the last among them: objects white, detections by class with scores.

    Args:
        path: file of the picture.
        annotations: images with their objects.
        detections: objects that were found.
        number: number of images.
        score: lowest score of the detections that are drawn.
        height: height of each image in pixels.
    """
    chosen = np.unique(np.linspace(0, len(annotations) - 1, number).astype(int)).tolist()
    images = FileImages(annotations.name, annotations.paths, torch.arange(len(annotations)), None, 3)
    cells = [
        _drawn(images.image(index), index, annotations, detections.subset(detections.scores >= score), height)
        for index in chosen
    ]
    width = max(cell.shape[2] for cell in cells)
    cells = [F.pad(cell, (0, width - cell.shape[2] + 4, 0, 4)) for cell in cells]
    cells += [torch.zeros_like(cells[0])] * (-len(cells) % 4)
    rows = [torch.cat(cells[start : start + 4], dim=2) for start in range(0, len(cells), 4)]
    picture = Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy())
    write_atomically(path, lambda file: picture.save(file, "png"))


def _drawn(
    image: Tensor, index: int, annotations: Annotations, detections: Detections, height: int
) -> UInt8[Tensor, "3 h w"]:
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    scale = height / image.shape[1]
    size = (height, max(1, round(image.shape[2] * scale)))
    resized = F.interpolate(to_unit(image)[None], size, mode="bilinear", antialias=True)[0]
    drawn = (resized * 255).round().clamp(0, 255).to(torch.uint8)
    own = detections.subset(detections.image == index)
    colors: list[Any] = [_COLORS[label % len(_COLORS)] for label in own.labels.tolist()]
    if own.masks:
        from faster_coco_eval.core import mask

        shapes = torch.stack([torch.from_numpy(mask.decode(run)) for run in own.masks])
        shapes = F.interpolate(shapes[None].float(), size)[0].bool()
        drawn = draw_segmentation_masks(drawn, shapes, alpha=0.5, colors=colors)
    truth = torch.from_numpy(annotations.boxes[annotations.image == index])
    if len(truth):
        drawn = draw_bounding_boxes(drawn, truth * scale, colors="white", width=1)
    if len(own.boxes):
        names = [annotations.classes[label] for label in own.labels.tolist()]
        said = [f"{name} {score:.2f}" for name, score in zip(names, own.scores.tolist(), strict=True)]
        places = torch.from_numpy(own.boxes) * scale
        # Black on the color of the class, which is that of the mask beneath too.
        drawn = draw_bounding_boxes(drawn, places, said, colors=colors, width=2, fill_labels=True)
    return drawn
