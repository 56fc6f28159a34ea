"""Mixtures: their distribution, and what is pasted where."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from ssl_clim.mixing import Mixture, cutmix, draw_mixtures, mixup

ROWS = torch.arange(4000)
UNLIKELY = 1e-3  # one seed of a thousand would fail, and the seed is fixed


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0, 2.5])
def test_ratios_follow_the_beta_distribution(alpha):
    ratio = draw_mixtures(0, 3, ROWS, alpha=alpha).ratio
    assert kstest(ratio.numpy(), beta(alpha, alpha).cdf).pvalue > UNLIKELY


def test_centers_are_uniform_over_the_image_and_independent_of_the_ratio():
    mixture = draw_mixtures(0, 3, ROWS, alpha=2.0)
    for axis in range(2):
        assert kstest(mixture.center[:, axis].numpy(), "uniform").pvalue > UNLIKELY
    correlation = torch.corrcoef(torch.cat([mixture.ratio[:, None], mixture.center], dim=1).T)
    assert (correlation - torch.eye(3)).abs().max() < 4 / len(ROWS) ** 0.5  # four standard errors


def test_a_row_has_the_same_mixture_in_any_batch_and_others_in_other_rows_steps_streams_and_seeds():
    def drawn(rows=ROWS, seed=0, step=3, stream=0):
        mixture = draw_mixtures(seed, step, rows, alpha=2.0, stream=stream)
        return torch.cat([mixture.ratio[:, None], mixture.center], dim=1)

    whole = drawn()
    assert torch.equal(torch.cat([drawn(part) for part in ROWS.split(1000)]), whole)
    assert len(whole.unique(dim=0)) == len(whole)
    for other in (drawn(seed=1), drawn(step=4), drawn(stream=1)):
        assert (other != whole).all()


def test_per_batch_all_rows_have_one_mixture():
    mixture = draw_mixtures(0, 3, ROWS, alpha=2.0, per_batch=True)
    assert len(mixture.ratio.unique()) == len(mixture.center.unique(dim=0)) == 1
    assert not torch.equal(draw_mixtures(0, 4, ROWS, alpha=2.0, per_batch=True).ratio, mixture.ratio)


def mixtures(*rows):
    values = torch.tensor(rows, dtype=torch.float64)
    return Mixture(values[:, 0], values[:, 1:])


def pasted(ratio, center, height=8, width=8):
    """Where the partner shows."""
    images, partners = torch.zeros(1, 2, height, width), torch.ones(1, 2, height, width)
    mixed, kept = cutmix(images, partners, mixtures((ratio, *center)))
    assert torch.equal(mixed[0, 0], mixed[0, 1])
    return mixed[0, 0].bool(), kept


def test_a_box_lies_around_its_center_with_sides_of_the_square_root_of_what_is_cut():
    inside, kept = pasted(0.75, (0.5, 0.25))  # half of each side: rows 2 to 5, columns 0 to 3
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 0:4] = True
    assert torch.equal(inside, expected)
    assert kept == 0.75


def test_a_box_at_the_border_is_clipped_and_the_ratio_is_that_of_the_area_left():
    inside, kept = pasted(0.75, (0.0, 1.0))  # a quarter of it is left: rows 0 to 1, columns 6 to 7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, 6:] = True
    assert torch.equal(inside, expected)
    assert kept == 1 - 4 / 64


@given(
    ratio=st.floats(0, 1),
    center=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
)
def test_the_ratio_is_the_mean_of_the_mask_for_any_box(ratio, center, size):
    inside, kept = pasted(ratio, center, *size)
    torch.testing.assert_close(kept[0], 1 - inside.float().mean(), atol=0, rtol=0)
    rows, columns = inside.any(dim=1), inside.any(dim=0)
    assert torch.equal(inside, rows[:, None] & columns[None, :])


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 1.0), (0.0, 0.0)])
def test_at_the_ends_one_image_is_left(ratio, kept):
    inside, found = pasted(ratio, (0.5, 0.5))
    assert found == kept
    assert inside.float().mean() == 1 - kept


def test_the_same_mixture_at_another_size_is_the_same_box_at_that_resolution():
    small, _ = pasted(0.6, (0.4, 0.55), 20, 20)
    large, _ = pasted(0.6, (0.4, 0.55), 200, 200)
    scaled = torch.nn.functional.interpolate(large[None, None].float(), size=20, mode="area")[0, 0]
    # Edges fall within half a pixel of the smaller one, so that a corner is a quarter of a pixel at least.
    assert (scaled - small.float()).abs().max() <= 0.75
    assert torch.equal(scaled > 0.5, small)


def test_each_row_has_its_own_box_and_shows_its_own_images():
    images, partners = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8), torch.full((2, 3, 8, 8), 9.0)
    mixed, kept = cutmix(images, partners, mixtures((0.75, 0.5, 0.5), (0.4375, 0.5, 0.5)))
    assert mixed[0].unique().tolist() == [0, 9]
    assert mixed[1].unique().tolist() == [1, 9]
    assert kept.tolist() == [0.75, 1 - 36 / 64]


def test_channels_last_stays_channels_last():
    images, partners = (torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last) for _ in range(2))
    for mix in (cutmix, mixup):
        mixed, _ = mix(images, partners, mixtures((0.7, 0.5, 0.5), (0.4, 0.5, 0.5)))
        assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_mixup_is_the_weighted_mean_of_each_pair():
    images, partners = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mixed, ratio = mixup(images, partners, mixtures((0.25, 0, 0), (0.5, 0, 0)))
    assert ratio.tolist() == [0.25, 0.5]
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * partners[0])
    torch.testing.assert_close(mixed[1], (images[1] + partners[1]) / 2)
