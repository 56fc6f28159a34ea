"""The pools' numbers, written down once more from CLSA's released code and table 1 of its paper, and DSSL's code."""

import pytest
import torch

from ssl_core.testing import DOUBLE
from ssl_core.views import DISTORTIONS, POOLS, Magnitude, RandAugment, Resize, ViewSpec, sample_parameters

NO_MAGNITUDE = [0.0] * 9

# Magnitudes at levels 1 to 9.
ENHANCEMENT = [0.14, 0.23, 0.32, 0.41, 0.5, 0.59, 0.68, 0.77, 0.86]
SHARE = [0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27]
CLSA_CODE = {
    "autocontrast": NO_MAGNITUDE,
    "brightness": ENHANCEMENT,
    "color": ENHANCEMENT,
    "contrast": ENHANCEMENT,
    "equalize": NO_MAGNITUDE,
    "identity": NO_MAGNITUDE,
    "posterize": [4, 4, 5, 5, 6, 6, 6, 7, 7],
    "rotate": [3, 6, 9, 12, 15, 18, 21, 24, 27],
    "sharpness": ENHANCEMENT,
    "shear_x": SHARE,
    "shear_y": SHARE,
    "solarize": [231, 205, 180, 154, 128, 103, 77, 52, 26],
    "translate_x": SHARE,
    "translate_y": SHARE,
}
SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y", "translate_x_px", "translate_y_px"}


# Magnitudes at M = 5, 9, 10 and 16 of DSSL's code, as it computes them: M / 30 (max - min) + min.
DSSL_LEVELS = (5, 9, 10, 16)
DSSL_NOTHING = [0.0] * 4
FACTOR = [0.4, 0.64, 0.7, 1.06]
SLOPE = [0.05, 0.09, 0.1, 0.16]
PIXELS = [100 / 6, 30.0, 100 / 3, 160 / 3]
DSSL_CODE = {
    "autocontrast": DSSL_NOTHING,
    "equalize": DSSL_NOTHING,
    "invert": DSSL_NOTHING,
    "rotate": [5.0, 9.0, 10.0, 16.0],
    "posterize": [0.0, 1.0, 1.0, 2.0],  # rendered with one bit at least
    "solarize": [256 / 6, 76.8, 256 / 3, 2048 / 15],
    "solarize_add": [18.0, 33.0, 36.0, 58.0],
    "color": FACTOR,
    "contrast": FACTOR,
    "brightness": FACTOR,
    "sharpness": FACTOR,
    "shear_x": SLOPE,
    "shear_y": SLOPE,
    "cutout": [20 / 3, 12.0, 40 / 3, 64 / 3],
    "translate_x_px": PIXELS,
    "translate_y_px": PIXELS,
}


def test_the_pool_of_clsas_code_has_its_fourteen_distortions_in_its_order():
    assert list(POOLS["clsa_code14"].magnitudes) == list(CLSA_CODE)


def test_the_pool_of_clsas_paper_inverts_where_the_code_does_nothing():
    paper = ["invert" if name == "identity" else name for name in CLSA_CODE]
    assert list(POOLS["clsa_paper14"].magnitudes) == paper
    for name in paper:
        if name != "invert":
            assert POOLS["clsa_paper14"].magnitudes[name] == POOLS["clsa_code14"].magnitudes[name]


@pytest.mark.parametrize("level", range(1, 10))
def test_magnitudes_are_those_of_clsas_code(level):
    op = RandAugment("clsa_code14", prob=1.0, level_range=(level, level))
    index, sizes = torch.arange(200), torch.full((200, 2), 32)
    drawn = sample_parameters(
        ViewSpec((Resize(), op), (32,)), seed=0, epoch=0, image_index=index, view_index=0, image_size=sizes
    )
    for name, magnitudes in CLSA_CODE.items():
        found = drawn[:, 1::2][drawn[:, ::2] == DISTORTIONS.index(name)]
        expected = torch.tensor(magnitudes[level - 1]).double()
        torch.testing.assert_close(found.abs(), expected.expand_as(found))
        assert bool((found < 0).any()) == (name in SIGNED)


def test_the_pool_of_dssls_code_has_its_sixteen_distortions_in_its_order():
    assert list(POOLS["dssl_code16"].magnitudes) == list(DSSL_CODE)
    assert len(DSSL_CODE) == 16


@pytest.mark.parametrize(("column", "level"), list(enumerate(DSSL_LEVELS)), ids=[f"M {level}" for level in DSSL_LEVELS])
def test_magnitudes_are_those_of_dssls_code(column, level):
    op = RandAugment("dssl_code16", prob=1.0, level_range=(level, level))
    index, sizes = torch.arange(200), torch.full((200, 2), 32)
    drawn = sample_parameters(
        ViewSpec((Resize(), op), (32,)), seed=0, epoch=0, image_index=index, view_index=0, image_size=sizes
    )
    for name, magnitudes in DSSL_CODE.items():
        found = drawn[:, 1::4][drawn[:, ::4] == DISTORTIONS.index(name)]
        assert len(found) > 0
        expected = torch.tensor(magnitudes[column], dtype=torch.float64)
        torch.testing.assert_close(found.abs(), expected.expand_as(found), rtol=DOUBLE, atol=0)
        assert bool((found < 0).any()) == (name in SIGNED)


@pytest.mark.parametrize("form", ["", "_relative"])
def test_the_pool_of_dssls_paper_lacks_two_of_the_codes(form):
    code, paper = (POOLS[f"dssl_{pool}{form}"].magnitudes for pool in ("code16", "paper14"))
    assert len(paper) == 14
    assert [name for name in code if name not in paper] == ["solarize_add", "cutout"]
    assert all(code[name] == magnitude for name, magnitude in paper.items())


def test_a_relative_translation_is_the_codes_in_a_view_of_224_pixels():
    absolute, relative = POOLS["dssl_code16"].magnitudes, POOLS["dssl_code16_relative"].magnitudes
    assert list(relative) == [name.removesuffix("_px") for name in absolute]
    for name, magnitude in absolute.items():
        if name.endswith("_px"):
            assert magnitude == Magnitude(0.0, 100.0, signed=True)
            assert relative[name.removesuffix("_px")] == Magnitude(0.0, 100 / 224, signed=True)
        else:
            assert relative[name] == magnitude


def test_the_ranges_are_those_of_table_1():
    ranges = {name: {magnitude.low, magnitude.high} for name, magnitude in POOLS["clsa_paper14"].magnitudes.items()}
    for name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        assert ranges[name] == {0, 0.3}  # and their negatives
    for name in ("contrast", "color", "brightness", "sharpness"):
        assert ranges[name] == {0.05, 0.95}
    assert (ranges["rotate"], ranges["solarize"], ranges["posterize"]) == ({0, 30}, {0, 256}, {4, 8})


@pytest.mark.parametrize("pool", POOLS)
def test_only_geometry_has_a_sign(pool):
    magnitudes = POOLS[pool].magnitudes
    assert {name for name, magnitude in magnitudes.items() if magnitude.signed} == SIGNED & magnitudes.keys()


def test_no_distortion_is_named_identity_but_the_first():
    assert DISTORTIONS[0] == "identity"
    assert len(set(DISTORTIONS)) == len(DISTORTIONS)
