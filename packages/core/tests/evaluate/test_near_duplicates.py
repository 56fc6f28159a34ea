import math

import pytest
import torch
import torch.nn.functional as F

from ssl_core.evaluate import chosen_threshold, false_negatives, near_duplicates, nearest_others, outliers, whitening


def groups_of(features, **options):
    unit = whitening(features).unit(features)
    return near_duplicates(unit, *nearest_others(unit, min(10, len(features) - 1)), **options)


def copies(features, rows, noise=0.02):
    return torch.cat([features, features[rows] + noise * torch.randn(len(rows), features.shape[1])])


def test_whitened_features_have_unit_covariance_before_they_are_normalized():
    features = torch.randn(500, 8) @ torch.diag(torch.logspace(-1, 0.5, 8)) + 3
    found = whitening(features)
    torch.testing.assert_close(torch.cov(((features - found.mean) @ found.weights).T, correction=0), torch.eye(8))


def test_few_images_are_whitened_in_few_directions():
    assert whitening(torch.randn(150, 64)).weights.shape == (64, 15)
    assert whitening(torch.randn(20, 64)).weights.shape == (64, 10)


def test_noise_is_not_blown_up():
    features = torch.randn(400, 4) @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-6]))
    assert whitening(features).weights.abs().max() < 200


def test_equal_features_of_all_images_are_refused():
    with pytest.raises(ValueError, match="the features of 9 images are all the same"):
        whitening(torch.ones(9, 4))


def test_threshold_is_where_one_unrelated_neighbor_is_expected():
    # (r_2 / r_4)^m has the median 1/2, so r_2 = r_4 / 2^(1/m); m = 2 here. 100 images with r_4 = 0.1 expect
    # 100 x 3 x (t / 0.1)^2 = 1 at t = 0.1 / sqrt(300).
    distance = torch.tensor([0.01, 0.1 / math.sqrt(2), 0.08, 0.1], dtype=torch.float64)
    threshold, reason = chosen_threshold(1 - distance.expand(100, 4))
    assert math.isclose(1 - threshold, 0.1 / 300**0.5, rel_tol=1e-6)
    assert reason.startswith("where one of 100 unrelated images is expected")


@pytest.mark.parametrize("times", [0, 0.1, 1, 3], ids=["none", "of a tenth", "of all", "three of all"])
def test_copies_are_found_and_little_else(times):
    features = torch.randn(500, 12)
    rows = torch.arange(int(500 * times)) % 500
    groups = [
        [row, *(500 + copy for copy in (rows == row).nonzero().flatten().tolist())] for row in rows.unique().tolist()
    ]
    found = groups_of(copies(features, rows))
    assert sum(group in found.groups for group in groups) >= 0.98 * len(groups)
    assert len(found.groups) - len(groups) <= 5


def test_a_film_among_photographs_is_found_beside_other_copies():
    features = torch.randn(3000, 12)
    found = groups_of(copies(features, torch.tensor([*[0] * 25, *range(1, 9)])))
    assert [0, *range(3000, 3025)] in found.groups
    assert all([row, 3024 + row] in found.groups for row in range(1, 9))


def test_all_of_a_group_are_near_the_one_that_is_kept():
    # A chain: each is near the next alone.
    angle = torch.arange(5) * 0.4
    unit = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = near_duplicates(unit, *nearest_others(unit, 2), threshold=0.9)
    assert found.groups == [[0, 1], [2, 3]]


def test_the_largest_image_is_kept_else_the_first():
    features = copies(torch.randn(200, 8), torch.tensor([3, 3, 5]), noise=1e-4)
    assert groups_of(features, threshold=0.999).groups == [[3, 200, 201], [5, 202]]
    sizes = [1] * 201 + [2, 1]
    assert groups_of(features, threshold=0.999, sizes=sizes).groups == [[201, 3, 200], [5, 202]]


def test_of_few_images_equal_ones_alone_are_near():
    features = torch.randn(6, 4)
    found = groups_of(torch.cat([features, features[:1]]))
    assert found.groups == [[0, 6]]
    assert "7 images say too little" in found.reason


def test_the_farthest_are_first_among_outliers():
    unit = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [1.0, -0.1], [0.0, 1.0]]), dim=1)
    assert outliers(nearest_others(unit, 2)[0], 2) == [2, 4]


@pytest.mark.parametrize("length", [32, 150], ids=["shorter than an epoch", "longer"])
def test_false_negatives_are_those_of_a_queue_filled_epoch_by_epoch(length):
    # Images 0 to 9 are copies of one, 10 and 11 of another; two epochs fill the queue, and the third is looked at.
    n, groups = 64, [10, 2]
    others, own, seen = 0.0, 0.0, 0
    for _ in range(300):
        keys = torch.cat([torch.randperm(n) for _ in range(4)])
        for at in range(3 * n, 4 * n, 8):
            queue, query = keys[at - length : at], int(keys[at])
            own += (queue == query).sum().item()
            if query < 10:
                others += ((queue < 10) & (queue != query)).sum().item()
            elif query < 12:
                others += (queue == 21 - query).sum().item()
            seen += 1
    expected = false_negatives(groups, n, length)
    # Queries at places 0, 8, ... of an epoch are a little earlier than all; sums of rare events differ by some percent.
    assert math.isclose(others / seen, expected[0], rel_tol=0.12)
    assert math.isclose(own / seen, expected[1], rel_tol=0.25)
