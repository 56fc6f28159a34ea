"""Shapes of objects: polygons, or runs of pixels, as COCO's files have them.

The points of all polygons lie in one array, which forked workers share, unlike a list of lists.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8
from numpy.typing import NDArray

# Either polygons (x y x y ...) in pixels, or a run-length encoding: {"size": [height, width], "counts": ...}.
Segmentation: TypeAlias = list[Any] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class Segments:
    """The shapes of m objects.

    Attributes:
        points: (p 2) x and y of the points of all polygons.
        polygons: (q 2) first point of each polygon, and the one after its last.
        objects: (m 2) first polygon of each object, and the one after its last.
        run: (m) number of the object's encoding in ``runs``, -1 for an object of polygons.
        runs: compressed run-length encodings.
    """

    points: Float64[np.ndarray, "p 2"]
    polygons: Int64[np.ndarray, "q 2"]
    objects: Int64[np.ndarray, "m 2"]
    run: Int64[np.ndarray, " m"]
    runs: tuple[dict[str, Any], ...]

    def subset(self, chosen: Bool[np.ndarray, " m"]) -> "Segments":
        """The shapes of some objects."""
        return replace(self, objects=self.objects[chosen], run=self.run[chosen])

    def segmentation(self, index: int, scale: tuple[float, float] = (1.0, 1.0)) -> Segmentation:
        """The shape of an object as COCO's files have it; polygons may be scaled by a factor for x and one for y."""
        if self.run[index] >= 0:
            return self.runs[int(self.run[index])]
        polygons = self.polygons[slice(*self.objects[index])]
        return [(self.points[start:stop] * scale).flatten().tolist() for start, stop in polygons]

    def mask(self, index: int, size: tuple[int, int], new_size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        """Pixels of an object, 1 inside, in an image that was resized.

        Polygons are scaled, then rasterized as COCO's tools do. Runs are resized as pixels, antialiased and bilinear,
        and are inside from 0.5 on.

        Args:
            index: number of the object.
            size: height and width of the image.
            new_size: height and width of the resized image.
        """
        from faster_coco_eval.core import mask

        if self.run[index] >= 0:
            whole = torch.from_numpy(mask.decode(self.segmentation(index))).float()
            resized = F.interpolate(whole[None, None], new_size, mode="bilinear", antialias=True)[0, 0]
            return (resized >= 0.5).to(torch.uint8).numpy()
        polygons = self.segmentation(index, (new_size[1] / size[1], new_size[0] / size[0]))
        return np.asarray(mask.decode(mask.merge(mask.frPyObjects(polygons, *new_size))))


def make_segments(segmentations: Sequence[Segmentation]) -> Segments:
    """The shapes of objects.

    Args:
        segmentations: polygons as :func:`polygons_of` gives them, or compressed run-length encoding, of each object.
    """
    points: list[NDArray[np.float64]] = []
    counts: list[int] = []
    run: list[int] = []
    runs: list[dict[str, Any]] = []
    for segmentation in segmentations:
        if isinstance(segmentation, dict):
            run.append(len(runs))
            counts.append(0)
            runs.append(segmentation)
        else:
            polygons = [np.array(each, float).reshape(-1, 2) for each in segmentation]
            run.append(-1)
            counts.append(len(polygons))
            points += polygons
    return Segments(
        points=np.concatenate([np.empty((0, 2)), *points]),
        polygons=_ranges([len(polygon) for polygon in points]),
        objects=_ranges(counts),
        run=np.array(run, np.int64),
        runs=tuple(runs),
    )


def polygons_of(segmentation: Any) -> list[Any]:
    """The polygons of three points or more; what is none is left out."""
    return [
        each
        for each in (segmentation if isinstance(segmentation, list) else ())
        if isinstance(each, list)
        and len(each) >= 6
        and len(each) % 2 == 0
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in each)
    ]


def compressed_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A run-length encoding as the evaluators take it.

    Raises:
        ValueError: if the runs are those of an image of another size, or none.
    """
    from faster_coco_eval.core import mask

    if segmentation.get("size") != [height, width]:
        raise ValueError(f"runs of an image of size {segmentation.get('size')}, which has {[height, width]}")
    try:
        runs = dict(mask.segmToRle(segmentation, width, height))
        mask.decode(runs)  # runs that are missing or do not fill the image are found nowhere else
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"runs that cannot be read ({error})") from error
    return runs


def encode_masks(masks: Shaped[np.ndarray, "k h w"]) -> list[dict[str, Any]]:
    """Compressed run-length encodings of pixels that are 1, or true, inside."""
    from faster_coco_eval.core import mask

    return list(mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)))


def check_detection() -> None:
    """Find faster-coco-eval before any work is done that only it can judge.

    Raises:
        ImportError: if it is not installed.
    """
    if find_spec("faster_coco_eval") is None:
        raise ImportError(
            "faster-coco-eval, which scores detections of COCO and LVIS and draws masks, is not installed: "
            'pip install "ssl-core[detection]"'
        )


def _ranges(lengths: Sequence[int]) -> Int64[np.ndarray, "n 2"]:
    stops = np.cumsum(lengths, dtype=np.int64)
    return np.stack([stops - lengths, stops], axis=1).astype(np.int64)
