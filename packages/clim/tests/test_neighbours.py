"""The search for positives against searches and choices written out here, and faiss that is missing or broken."""

import importlib
from collections import Counter
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_clim import neighbours
from ssl_clim.neighbours import (
    Clusters,
    Positives,
    center_wise_positives,
    check_counts,
    cluster,
    find_positives,
    kmeans_positives,
    knn_kmeans_positives,
    knn_positives,
    label_purity,
    load_faiss,
    nearest,
    num_clusters,
    random_positives,
    summary,
)
from ssl_core.testing import SINGLE

FAISS = load_faiss(torch.device("cpu"))
SELECTIONS = ("random", "knn", "kmeans", "knn_kmeans", "center_wise")


def random_rows(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def grid_rows(n, d=3, side=4, seed=0):
    """Integers, whose distances float32 holds exactly; many are equal."""
    return np.random.default_rng(seed).integers(0, side, (n, d)).astype(np.float32)


def changing_places(features):
    """Two rows as far as each other but for this may change places: |x|^2 + |y|^2 - 2 x.y is rounded to float32."""
    return SINGLE * np.square(features, dtype=np.float64).sum(axis=1).max()


def on_disk(features, path):
    file = np.memmap(path, dtype=np.float16, mode="w+", shape=features.shape)
    file[:] = features
    file.flush()
    return np.memmap(path, dtype=np.float16, mode="r", shape=features.shape)


def squared_distances(features):
    wide = features.astype(np.float64)
    squared_length = np.square(wide).sum(axis=1)
    return squared_length[:, None] + squared_length - 2 * wide @ wide.T


def brute_force_neighbours(features, k):
    """By distance, then by index, without the row itself."""
    distance = squared_distances(features)
    np.fill_diagonal(distance, np.inf)
    return distance.argsort(axis=1, kind="stable")[:, :k].astype(np.int32)


def brute_force_clusters(features, centroids):
    distance = np.square(features[:, None] - centroids[None]).sum(axis=2)
    assignment = distance.argmin(axis=1).astype(np.int32)
    own = distance[np.arange(len(features)), assignment].astype(np.float32)
    return Clusters(centroids.astype(np.float32), assignment, own, len(features))


# ---- nearest


@pytest.mark.parametrize(
    ("n", "d", "k", "block_rows"),
    [(60, 5, 7, 60), (61, 5, 7, 16), (43, 3, 41, 10), (42, 3, 41, 8192), (1200, 128, 40, 900), (50, 2, 1, 1)],
    ids=[
        "one block",
        "a part of a block",
        "blocks below k",
        "n barely above k",
        "products of matrices",
        "blocks of one row",
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16 on disk"])
def test_nearest_is_the_sort_of_all_distances(n, d, k, block_rows, dtype, tmp_path):
    features = random_rows(n, d, dtype)
    searched = on_disk(features, tmp_path / "features") if dtype == np.float16 else features
    found = nearest(searched, k, FAISS, block_rows=block_rows)
    distance = squared_distances(features)
    exact = np.take_along_axis(distance, brute_force_neighbours(features, k), axis=1)
    np.testing.assert_allclose(
        np.take_along_axis(distance, found, axis=1), exact, rtol=0, atol=changing_places(features)
    )
    assert found.dtype == np.int32
    assert all(len({i, *row}) == k + 1 for i, row in enumerate(found.tolist()))


@pytest.mark.parametrize(
    ("n", "d", "block_rows"),
    [(150, 3, 7), (150, 3, 64), (150, 3, 1000), (1200, 128, 900), (1200, 128, 2000)],  # the last two by products
)
@pytest.mark.parametrize("k", [1, 10, 40, 110])
def test_of_equally_near_rows_the_lower_index_comes_first(n, d, block_rows, k):
    features = grid_rows(n, d=d, side=3)
    np.testing.assert_array_equal(
        nearest(features, k, FAISS, block_rows=block_rows), brute_force_neighbours(features, k)
    )


@pytest.mark.parametrize("block_rows", [4, 100])
def test_a_row_pushed_out_by_its_duplicates_is_not_among_its_neighbours(block_rows):
    found = nearest(np.ones((30, 4), np.float32), 5, FAISS, block_rows=block_rows)
    for i, row in enumerate(found.tolist()):
        assert row == [j for j in range(30) if j != i][:5]


def test_the_first_rows_can_be_searched_for_alone():
    features = grid_rows(90)
    np.testing.assert_array_equal(
        nearest(features, 5, FAISS, num_queries=33, block_rows=20), nearest(features, 5, FAISS)[:33]
    )


def test_nearest_shows_progress_only_with_a_text(capfd):
    nearest(random_rows(20, 3), 3, FAISS)
    assert capfd.readouterr().err == ""
    nearest(random_rows(20, 3), 3, FAISS, progress="neighbours")
    assert "neighbours: 100%" in capfd.readouterr().err


@pytest.mark.gpu
def test_a_gpu_finds_the_neighbours_that_the_cpu_finds():
    faiss = load_faiss(torch.device("cuda"))
    if faiss.gpu is None:
        pytest.skip(faiss.description)
    features = grid_rows(500, d=8, side=100)
    distance = squared_distances(features)
    on_gpu, on_cpu = (nearest(features, 20, each, block_rows=64) for each in (faiss, FAISS))
    np.testing.assert_array_equal(
        np.take_along_axis(distance, on_gpu, axis=1), np.take_along_axis(distance, on_cpu, axis=1)
    )
    assert (cluster(features, 5, faiss, seed=0).assignment < 5).all()


# ---- cluster


def blobs(num, per_blob, d=8):
    """Rows around ``num`` far centers, in turns."""
    centers = 10 * np.eye(num, d, dtype=np.float32)
    noise = 0.1 * random_rows(num * per_blob, d)
    return np.tile(centers, (per_blob, 1)) + noise


def test_far_apart_blobs_become_the_clusters():
    found = cluster(blobs(5, 40), 5, FAISS, seed=0)
    of_blob = found.assignment.reshape(40, 5)
    assert (of_blob == of_blob[0]).all()
    assert len(set(of_blob[0])) == 5


def test_each_row_belongs_to_the_nearest_center_at_its_distance(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 37)
    features = random_rows(400, 6)
    found = cluster(features, 13, FAISS, seed=0)
    distance = np.square(features.astype(np.float64)[:, None] - found.centroids.astype(np.float64)[None]).sum(axis=2)
    own = distance[np.arange(400), found.assignment]
    np.testing.assert_allclose(own, distance.min(axis=1), rtol=0, atol=changing_places(features))
    np.testing.assert_allclose(found.distance, own, rtol=SINGLE)


def test_distances_to_the_center_are_exact_far_from_the_origin():
    features = 10 + random_rows(1000, 128)
    found = cluster(features, 4, FAISS, seed=0)
    exact = np.square(features.astype(np.float64) - found.centroids[found.assignment]).sum(axis=1)
    np.testing.assert_allclose(found.distance, exact, rtol=SINGLE)


def test_equal_rows_of_a_cluster_are_equally_far_from_its_center(monkeypatch):
    # Blocks in which the copies stand at other places.
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 901)
    features = np.tile(random_rows(70, 128), (30, 1))
    found = cluster(features, 6, FAISS, seed=0)
    by_row = {}
    for i, (own, distance) in enumerate(zip(found.assignment, found.distance, strict=True)):
        by_row.setdefault((i % 70, own), set()).add(float(distance))
    assert all(len(distances) == 1 for distances in by_row.values())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_same_seed_gives_the_same_clusters_to_the_last_bit(threads, dtype):
    before = FAISS.library.omp_get_max_threads()
    FAISS.library.omp_set_num_threads(threads)
    try:
        first, second = (
            cluster(random_rows(3000, 128, dtype), 23, FAISS, seed=7, iterations=3, restarts=2) for _ in range(2)
        )
    finally:
        FAISS.library.omp_set_num_threads(before)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_other_clusters():
    first, second = (cluster(random_rows(500, 8), 23, FAISS, seed=seed) for seed in (0, 2**40 + 1))
    assert (first.centroids != second.centroids).any()


def test_float16_on_disk_gives_the_clusters_of_the_same_numbers_in_memory(tmp_path):
    features = on_disk(random_rows(700, 9), tmp_path / "features")
    for a, b in zip(
        cluster(features, 11, FAISS, seed=0), cluster(np.asarray(features, np.float32), 11, FAISS, seed=0), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_kmeans_sees_no_more_rows_than_allowed_and_assigns_all():
    features = random_rows(500, 8)
    found = cluster(features, 5, FAISS, seed=0, max_points_per_centroid=20)
    assert found.num_trained == 100
    sampled = np.sort(neighbours.permutation(0, (neighbours._SAMPLE_STREAM, 0), 500)[:100].numpy())
    other = -features
    other[sampled] = features[sampled]
    changed = cluster(other, 5, FAISS, seed=0, max_points_per_centroid=20)
    np.testing.assert_array_equal(changed.centroids, found.centroids)
    assert len(changed.assignment) == 500


def test_more_iterations_and_more_restarts_bring_rows_nearer_to_their_centers():
    features = random_rows(600, 4)

    def total(**settings):
        return cluster(features, 40, FAISS, seed=0, **settings).distance.sum()

    assert total(iterations=20, restarts=1) < total(iterations=1, restarts=1)
    assert total(iterations=5, restarts=20) < total(iterations=5, restarts=1)


def test_spherical_centers_have_length_one():
    features = random_rows(300, 6) + 1
    length = np.linalg.norm(cluster(features, 7, FAISS, seed=0, spherical=True).centroids, axis=1)
    np.testing.assert_allclose(length, 1, rtol=SINGLE)
    assert (np.linalg.norm(cluster(features, 7, FAISS, seed=0).centroids, axis=1) > 1.01).any()


@pytest.mark.parametrize("m", [1, 2, 25, 50])
@pytest.mark.parametrize("rows", [random_rows(50, 3), np.ones((50, 3), np.float32)], ids=["random", "all equal"])
def test_few_rows_make_clusters_without_a_word_from_faiss(m, rows, capfd):
    found = cluster(rows, m, FAISS, seed=0)
    assert np.isfinite(found.centroids).all()
    assert found.centroids.shape == (m, 3)
    assert found.assignment.min() >= 0
    assert found.assignment.max() < m
    assert capfd.readouterr() == ("", "")


# ---- selections


def check_selected(positives, near, valid):
    """A choice of valid[i], all of them where there are no more than p, then the nearest of near[i] not yet there."""
    p = positives.table.shape[1]
    assert positives.table.dtype == positives.chosen.dtype == np.int32
    for i, (row, chosen) in enumerate(zip(positives.table.tolist(), positives.chosen.tolist(), strict=True)):
        assert chosen == min(len(valid[i]), p)
        assert set(row[:chosen]) <= set(valid[i])
        assert row[chosen:] == [j for j in near[i].tolist() if j not in row[:chosen]][: p - chosen]
        assert len({i, *row}) == p + 1


def rule(selection, near, clusters):
    """The rows that a selection may choose for each row, in plain Python."""
    n = len(near)
    own, distance = clusters.assignment.tolist(), clusters.distance.tolist()
    everything = [[j for j in range(n) if j != i] for i in range(n)]
    if selection == "random":
        return everything
    if selection == "kmeans":
        return [[j for j in everything[i] if own[j] == own[i]] for i in range(n)]
    inside = [[j for j in near[i].tolist() if own[j] == own[i]] for i in range(n)]
    if selection == "knn_kmeans":
        return inside
    return [[j for j in inside[i] if distance[j] <= distance[i]] for i in range(n)]


def select(selection, near, clusters, p, seed=0, refresh=0):
    if selection == "random":
        return random_positives(len(near), p, seed=seed, refresh=refresh)
    functions = {"kmeans": kmeans_positives, "knn_kmeans": knn_kmeans_positives, "center_wise": center_wise_positives}
    return functions[selection](clusters, near, p, seed=seed, refresh=refresh)


def case(features, centroids, k):
    return brute_force_neighbours(features, k), brute_force_clusters(features, centroids)


CASES = {
    "random features": case(random_rows(200, 4), random_rows(5, 4, seed=1), 40),
    "duplicates": case(grid_rows(150, side=2), grid_rows(4, side=2, seed=1), 30),
    "all equal": case(np.ones((60, 3)), np.zeros((1, 3)), 20),
    "empty clusters": case(grid_rows(90), np.concatenate([grid_rows(6), np.full((5, 3), 99.0)[:, :3]]), 25),
    "clusters of fewer than ten": case(grid_rows(80), grid_rows(30, seed=3), 15),
    "n barely above k": case(grid_rows(41, side=9), grid_rows(3, side=9, seed=1), 40),
    "one cluster": case(grid_rows(70, side=9), grid_rows(1), 12),
    "half as many clusters as rows": case(grid_rows(60, side=9), grid_rows(60, side=9)[:30], 12),
    "as many positives as neighbours": case(grid_rows(60), grid_rows(5), 10),
}


@pytest.mark.parametrize("selection", ["random", "kmeans", "knn_kmeans", "center_wise"])
@pytest.mark.parametrize("name", CASES)
def test_a_selection_chooses_among_what_its_rule_allows_and_fills_with_the_nearest(selection, name, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 17)
    near, clusters = CASES[name]
    check_selected(select(selection, near, clusters, 10), near, rule(selection, near, clusters))


@given(
    n=st.integers(3, 40),
    side=st.integers(1, 6),
    m=st.integers(1, 20),
    selection=st.sampled_from(["random", "kmeans", "knn_kmeans", "center_wise"]),
    seed=st.integers(0, 2**64),
    data=st.data(),
)
def test_a_selection_follows_its_rule_at_any_size(n, side, m, selection, seed, data):
    k = data.draw(st.integers(1, n - 1))
    p = data.draw(st.integers(1, k))
    near, clusters = case(grid_rows(n, side=side, seed=n), grid_rows(m, side=side, seed=m), k)
    check_selected(select(selection, near, clusters, p, seed), near, rule(selection, near, clusters))


def test_center_wise_by_hand():
    # Rows on a line at 0, 1, 2, 3, 10; center of the first four at 1, of the last at 10. Distances 1 0 1 2, 0.
    # Neighbours of row 3 (at 3): 2, 1, 0; all lie in its cluster and none is farther from its center than 2.
    # Of row 0: 1, 2, 3; row 3 is farther than 1, so rows 1 and 2 are chosen, and 3 fills.
    # Of row 1, at the center: 0, 2, 3; none; the nearest two fill.
    near = np.array([[1, 2, 3], [0, 2, 3], [1, 3, 0], [2, 1, 0], [3, 2, 1]], np.int32)
    clusters = Clusters(
        np.array([[1.0], [10.0]], np.float32),
        np.array([0, 0, 0, 0, 1], np.int32),
        np.array([1, 0, 1, 4, 0], np.float32),
        5,
    )
    found = center_wise_positives(clusters, near, 3, seed=0, refresh=0)
    assert found.chosen.tolist() == [2, 0, 2, 3, 0]
    assert [set(row[:c]) for row, c in zip(found.table.tolist(), found.chosen, strict=True)] == [
        {1, 2},
        set(),
        {0, 1},
        {0, 1, 2},
        set(),
    ]
    assert [row[c:] for row, c in zip(found.table.tolist(), found.chosen, strict=True)] == [
        [3],
        [0, 2, 3],
        [3],
        [],
        [3, 2, 1],
    ]


def test_knn_takes_the_nearest():
    near = brute_force_neighbours(random_rows(30, 3), 8)
    found = knn_positives(near, 3)
    np.testing.assert_array_equal(found.table, near[:, :3])
    assert (found.chosen == 3).all()


@pytest.mark.parametrize("selection", ["random", "kmeans", "knn_kmeans", "center_wise"])
def test_a_rows_choice_depends_on_seed_refresh_and_row_and_not_on_its_block(selection, monkeypatch):
    near, clusters = CASES["random features"]
    whole = select(selection, near, clusters, 10).table
    assert (whole != select(selection, near, clusters, 10, seed=1).table).any()
    assert (whole != select(selection, near, clusters, 10, refresh=1).table).any()
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 13)
    np.testing.assert_array_equal(select(selection, near, clusters, 10).table, whole)


def chi_square(counts):
    expected = np.mean(counts)
    return np.square(np.asarray(counts) - expected).sum() / expected


def test_all_subsets_are_drawn_equally_often():
    draws = neighbours._draws(0, 0, slice(0, 20000), 2)
    drawn = Counter(frozenset(row) for row in neighbours._subsets(np.full(20000, 5), draws).tolist())
    assert set(drawn) == {frozenset(pair) for pair in combinations(range(5), 2)}
    assert chi_square(list(drawn.values())) < 27.9  # quantile 0.999 at 9 degrees of freedom


@pytest.mark.parametrize("selection", ["random", "kmeans", "knn_kmeans"])
def test_every_allowed_row_is_chosen_equally_often(selection):
    # One cluster of 41 rows, all 40 others are neighbours: by rank, each should come in 10 of 40 choices.
    features = grid_rows(41, side=50)
    near, clusters = case(features, grid_rows(1), 40)
    rank = near.argsort(axis=1)  # of the others by index
    counts = np.zeros(40)
    for refresh in range(20):
        table = select(selection, near, clusters, 10, refresh=refresh).table
        place = table - (table > np.arange(41)[:, None])  # among the others by index
        np.add.at(counts, np.take_along_axis(rank, place, axis=1), 1)
    # Less than for independent draws, as those of a row are distinct; quantile 0.999 at 39 degrees of freedom.
    assert chi_square(counts) < 72.1


# ---- all together


@pytest.mark.parametrize("selection", SELECTIONS)
def test_positives_of_features_follow_the_rule_of_the_selection(selection):
    features = grid_rows(120, d=4, side=9)
    found, clusters = find_positives(
        features, selection, FAISS, clusters=6, neighbours=20, positives=5, seed=3, refresh=2
    )
    near = brute_force_neighbours(features, 20)
    assert (clusters is None) == (selection in ("random", "knn"))
    if selection == "knn":
        np.testing.assert_array_equal(found.table, near[:, :5])
        return
    again = cluster(features, 6, FAISS, seed=3)
    check_selected(found, near, rule(selection, near, again))
    np.testing.assert_array_equal(found.table, select(selection, near, again, 5, seed=3, refresh=2).table)


def test_spherical_reaches_kmeans():
    _, clusters = find_positives(random_rows(90, 4), "kmeans", FAISS, clusters=4, seed=0, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, rtol=SINGLE)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_positives_of_float16_on_disk_are_those_of_the_same_numbers_in_memory(selection, tmp_path):
    features = on_disk(random_rows(150, 8), tmp_path / "features")
    first, second = (
        find_positives(each, selection, FAISS, clusters=5, seed=0)[0] for each in (features, np.float32(features))
    )
    np.testing.assert_array_equal(first.table, second.table)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"clusters": 51}, "neighbours.clusters 51"),
        ({"clusters": 0}, "neighbours.clusters 0"),
        ({"neighbours": 50}, "neighbours.k 50: of 50 images, each has at least 1 and at most 49"),
        ({"neighbours": 0}, "neighbours.k 0"),
        (
            {"neighbours": 9, "positives": 10},
            "neighbours.positives 10: at least 1, and at most neighbours.k, which is 9",
        ),
        ({"positives": 0}, "neighbours.positives 0"),
    ],
)
def test_counts_that_do_not_fit_are_refused_by_the_name_of_their_key(counts, message):
    with pytest.raises(ValueError, match=message):
        check_counts(50, **counts)
    with pytest.raises(ValueError, match=message):
        find_positives(random_rows(50, 3), "center_wise", FAISS, **{"clusters": 2, **counts}, seed=0)


@pytest.mark.parametrize("search", [lambda x: cluster(x, 3, FAISS, seed=0), lambda x: nearest(x, 3, FAISS)])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (random_rows(20, 3, np.float64), "features are float64"),
        (random_rows(3, 20).T, "C-contiguous: False"),
        (
            np.where(np.arange(20)[:, None] == 13, np.nan, random_rows(20, 3)).astype(np.float16),
            "row 13 are not finite",
        ),
    ],
    ids=["float64", "a transpose", "not finite"],
)
def test_features_that_cannot_be_searched_are_refused(search, features, message):
    with pytest.raises(ValueError, match=message):
        search(features)


def test_clusters_hold_128_images_each():
    assert [num_clusters(n) for n in (1, 100, 1280, 105_000)] == [1, 1, 10, 820]


def test_purity_counts_pairs_of_known_labels_only():
    # Of row 0: same, other; of row 1: same, unknown; row 2 is other than both; row 3 is unknown itself.
    table = np.array([[1, 2], [0, 3], [0, 1], [0, 1]], np.int32)
    assert label_purity(table, np.array([4, 4, 5, -1])) == 2 / 5
    assert np.isnan(label_purity(table, np.full(4, -1)))


def test_the_summary_counts_positives_before_filling_and_clusters():
    clusters = Clusters(
        np.zeros((5, 2), np.float32), np.array([0, 0, 0, 1, 3, 3], np.int32), np.zeros(6, np.float32), 5
    )
    positives = Positives(np.array([[1], [0], [0], [0], [5], [4]], np.int32), np.array([1, 1, 1, 0, 1, 1], np.int32))
    assert summary(positives, clusters, np.array([7, 7, 8, 8, 9, 9])) == {
        "positives_chosen": pytest.approx(5 / 6),
        "cluster_size_min": 0,
        "cluster_size_median": 1,
        "cluster_size_max": 3,
        "clusters_empty": 2,
        "kmeans_trained_on": 5,
        "positives_purity": pytest.approx(4 / 6),
    }
    assert set(summary(positives, None, np.full(6, -1))) == {"positives_chosen"}


# ---- which faiss


@pytest.fixture
def installed(monkeypatch):
    """Pretends that these distributions provide faiss, and that importing it gives this."""

    def install(distributions, module):
        def import_module(name):
            assert name == "faiss"
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(
            neighbours, "packages_distributions", lambda: {"faiss": distributions} if distributions else {}
        )
        monkeypatch.setattr(neighbours, "version", lambda name: "1.99")
        monkeypatch.setattr(importlib, "import_module", import_module)

    return install


def fake_faiss(gpus=None):
    """A module as a build for the CPU has it, or one for GPUs that sees this many."""
    module = ModuleType("faiss")
    module.Clustering = object
    if gpus is not None:
        module.get_num_gpus = lambda: gpus
        module.StandardGpuResources = object
        module.knn_gpu = lambda resources, queries, database, k, device: (resources, queries, database, k, device)
    return module


def test_missing_faiss_names_both_extras(installed):
    installed([], ImportError("never reached"))
    with pytest.raises(ImportError, match=r'not installed; pip install "ssl-clim\[cpu\]" or .*"ssl-clim\[gpu\]"'):
        load_faiss(torch.device("cpu"))


def test_two_faiss_over_each_other_are_refused_with_what_to_uninstall(installed):
    installed(["faiss-gpu-cu12", "faiss-cpu"], fake_faiss())
    with pytest.raises(ImportError, match=r"pip uninstall faiss-cpu faiss-gpu-cu12, then .*\[cpu\].*\[gpu\]"):
        load_faiss(torch.device("cpu"))


def test_a_distribution_listed_twice_is_one(installed):
    installed(["faiss-cpu", "faiss-cpu"], fake_faiss())
    assert load_faiss(torch.device("cpu")).description == "faiss-cpu 1.99 on the CPU"


def test_what_is_left_of_an_uninstalled_faiss_is_not_taken_for_one(installed):
    installed(["faiss-cpu"], ModuleType("faiss"))
    with pytest.raises(ImportError, match=r"faiss-cpu 1.99 cannot be imported: it is not whole"):
        load_faiss(torch.device("cpu"))


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, OSError])
def test_a_faiss_that_cannot_be_imported_is_named_with_the_reason(installed, kind):
    installed(["faiss-gpu"], kind("libcublas.so.12: cannot open"))
    with pytest.raises(
        ImportError, match=r"faiss-gpu 1.99 cannot be imported: libcublas.*pip uninstall faiss-gpu, then"
    ):
        load_faiss(torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "gpus", "gpu", "description"),
    [
        ("cpu", 2, None, "faiss-x 1.99 on the CPU"),
        ("cuda:1", 2, 1, "faiss-x 1.99 on cuda:1"),
        ("cuda:1", 1, None, "faiss-x 1.99 on the CPU: it sees 1 GPUs, so not cuda:1"),
        ("cuda:0", None, None, "faiss-x 1.99 on the CPU: a build without GPU; ssl-clim[gpu] would use cuda:0"),
    ],
    ids=["asked for the CPU", "on the GPU", "GPU not seen", "build without GPU"],
)
def test_the_gpu_is_used_where_it_can_be_and_the_description_says_why_not(installed, device, gpus, gpu, description):
    installed(["faiss-x"], fake_faiss(gpus))
    faiss = load_faiss(torch.device(device))
    assert (faiss.gpu, faiss.description) == (gpu, description)


def test_a_search_on_a_gpu_runs_on_that_one(installed):
    installed(["faiss-gpu"], fake_faiss(4))
    assert load_faiss(torch.device("cuda:3")).knn()("queries", "database", 5)[1:] == ("queries", "database", 5, 3)


def test_the_faiss_of_these_tests_is_described():
    assert FAISS.gpu is None
    assert FAISS.description == f"faiss-cpu {FAISS.library.__version__} on the CPU"
