import numpy as np
import pytest

from ssl_core.detect.segments import compressed_runs, encode_masks, make_segments, polygons_of


def square(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_polygons_are_scaled_and_then_rasterized():
    segments = make_segments([[square(10, 4, 20, 8), square(30, 20, 40, 30)]])
    mask = segments.mask(0, (40, 60), (80, 180))
    expected = np.zeros((80, 180))
    expected[8:16, 30:60] = expected[40:60, 90:120] = 1
    assert mask.dtype == np.uint8
    assert (mask == expected).all()


@pytest.mark.parametrize("form", ["list", "bytes", "text"])
def test_runs_are_resized_as_pixels(form):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:20, 20:50] = 1
    (run,) = encode_masks(pixels[None])
    if form == "list":  # column by column: how many 0, how many 1, ...
        edges = np.flatnonzero(np.diff(pixels.T.flatten())) + 1
        run = {"size": [40, 60], "counts": np.diff([0, *edges, pixels.size]).tolist()}
    if form == "text":
        run = run | {"counts": run["counts"].decode()}
    segments = make_segments([compressed_runs(run, 40, 60)])
    assert (segments.mask(0, (40, 60), (40, 60)) == pixels).all()
    half = segments.mask(0, (40, 60), (20, 30))
    expected = np.zeros((20, 30))
    expected[5:10, 10:25] = 1
    assert (half == expected).all()


def test_what_is_no_polygon_is_left_out():
    whole = square(2, 2, 9, 9)
    assert polygons_of([[1, 1, 5, 5], whole, [1, 1, 5, 5, 9], 7, ["a", 1, 2, 3, 4, 5], []]) == [whole]
    assert polygons_of(whole) == []
    segments = make_segments([[], [whole]])
    assert segments.segmentation(0) == []
    assert segments.subset(np.array([False, True])).segmentation(0) == [whole]


def test_no_objects_have_no_shapes():
    assert len(make_segments([]).objects) == 0
    assert encode_masks(np.zeros((0, 4, 5), bool)) == []
