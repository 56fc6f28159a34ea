from collections.abc import Callable

import numpy as np
import pytest

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
