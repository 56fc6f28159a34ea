import io
import sys

import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from ssl_core.evaluate import choose_images, pca_points, plane_points, tsne_picture, tsne_points
from ssl_core.evaluate.tsne import check_plot

LABELS = torch.tensor([0, 2, 2, 1, 0, 2, 3, 1, 2, -1, -1])


def chosen_labels(**options):
    return LABELS[choose_images(LABELS, **options)].tolist()


def png(panels, labels, names, **options):
    file = io.BytesIO()
    tsne_picture(panels, labels, names, **options).savefig(file, format="png")
    return file.getvalue()


def test_only_classes_of_two_images_are_chosen_and_all_where_there_are_no_more():
    assert chosen_labels(classes=10, images_per_class=9, seed=0) == [0, 2, 2, 1, 0, 2, 1, 2]


def test_as_many_classes_and_images_are_chosen_as_are_asked_for():
    found = torch.tensor(chosen_labels(classes=2, images_per_class=2, seed=0))
    assert found.bincount()[found.unique()].tolist() == [2, 2]


def test_the_seed_chooses_classes_and_images():
    labels = torch.arange(12).repeat(20)
    drawn = [choose_images(labels, classes=3, images_per_class=4, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(drawn[0], drawn[1])
    assert set(labels[drawn[0]].tolist()) != set(labels[drawn[2]].tolist())
    assert torch.equal(drawn[0], drawn[0].sort().values)


def test_fewer_than_two_classes_to_compare_are_refused():
    with pytest.raises(ValueError, match="1 of the classes of 3 test images have two images"):
        choose_images(torch.tensor([0, 0, 1]), classes=2, images_per_class=5, seed=0)
    with pytest.raises(ValueError, match="0 of the classes of 2 test images have two images"):
        choose_images(torch.tensor([-1, -1]), classes=2, images_per_class=5, seed=0)


def test_points_do_not_depend_on_the_lengths_of_features():
    features = torch.randn(40, 6)
    # Powers of two, so that unit vectors stay the same to the last bit.
    scaled = features * 2.0 ** torch.randint(-3, 4, (40, 1))
    points = tsne_points(features, perplexity=5.0, seed=0)
    assert torch.equal(tsne_points(scaled, perplexity=5.0, seed=0), points)


def test_points_are_found_in_one_thread_so_that_sums_have_one_order(monkeypatch):
    threads = []
    fit = TSNE.fit_transform

    def spy(solver, features):
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(solver, features)

    monkeypatch.setattr(TSNE, "fit_transform", spy)
    with threadpool_limits(limits=2):
        tsne_points(torch.randn(9, 4), perplexity=2.0, seed=0)
    assert set(threads) == {1}


def test_what_is_alike_in_angle_is_close_in_the_plane():
    center = torch.arange(40) % 2
    features = (torch.eye(6)[center] + 0.1 * torch.randn(40, 6)) * torch.rand(40, 1).add(0.1)
    points = tsne_points(features, perplexity=5.0, seed=0)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(center[nearest], center)


def test_features_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="features of 9 images are all the same: the encoder has collapsed"):
        tsne_points(torch.ones(9, 4), perplexity=3.0, seed=0)


def test_a_picture_has_a_titled_panel_for_each_encoder_and_one_legend_of_the_classes_shown():
    labels, names = torch.tensor([4, 1, 1, 4]), ["a", "bird", "c", "d", "frog"]
    panels = [("first", torch.randn(4, 2)), ("second", torch.randn(4, 2))]
    figure = tsne_picture(panels, labels, names, caption="four images")
    assert [axes.get_title() for axes in figure.axes] == ["first", "second"]
    assert not any(len(ticks) for axes in figure.axes for ticks in (axes.get_xticks(), axes.get_yticks()))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bird", "frog"]
    assert figure.get_supxlabel() == "four images"


def test_each_point_has_the_color_and_the_marker_of_its_class():
    # Points at (label, index), so that what is drawn can be read back.
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 3)
    points = torch.stack([labels.float(), torch.arange(30.0)], dim=1)
    figure = tsne_picture([("one", points)], labels, [str(label) for label in range(10)])
    drawn = {}
    for part in figure.axes[0].collections:
        corners = len(part.get_paths()[0].vertices)
        for (label, _), color in zip(part.get_offsets().tolist(), part.get_facecolors().tolist(), strict=True):
            drawn.setdefault(int(label), set()).add((tuple(color), corners))
    assert [len(drawn[label]) for label in range(10)] == [1] * 10
    assert len(set.union(*drawn.values())) == 10
    shown = [(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()]
    assert len(set(shown)) == 10


def test_panels_beyond_a_row_go_to_the_next_and_nothing_lies_on_the_legend():
    points = torch.randn(6, 2)
    names = ["_hidden", "$\\frac$", "a name so long that it would push the panels aside"]
    figure = tsne_picture([(str(n), points) for n in range(5)], torch.tensor([0, 1, 2] * 2), names, caption="x" * 300)
    figure.savefig(io.BytesIO(), format="png")
    assert len(figure.axes) == 5
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2
    legend = figure.legends[0].get_window_extent().transformed(figure.transFigure.inverted())
    assert max(axes.get_position().x1 for axes in figure.axes) < legend.x0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names[:2], "a name so long that i..."]


def test_the_same_points_give_the_same_bytes():
    panels, labels, names = [("one", torch.randn(8, 2))], torch.arange(8) % 3, ["a", "b", "c"]
    first = png(panels, labels, names, caption="eight")
    assert png(panels, labels, names, caption="eight") == first
    assert Image.open(io.BytesIO(first)).size == (960, 780)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    check_plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "ssl-core\[plot\]"'):
        check_plot()


def test_principal_components_are_scikit_learns_up_to_sign():
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([3.0, 2, 1, 1, 1, 1])
    expected = PCA(2).fit_transform(torch.nn.functional.normalize(features, dim=1).numpy())
    found = pca_points(features)
    for axis in (0, 1):
        sign = 1 if found[0, axis] * expected[0, axis] > 0 else -1
        torch.testing.assert_close(sign * found[:, axis], torch.from_numpy(expected[:, axis]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("number", "most", "said"),
    [(12, 5000, "t-SNE, perplexity 3.67"), (12, 11, "PCA, of more than 11 images"), (9, 5000, "PCA, of less than 10")],
)
def test_points_in_the_plane_are_tsnes_where_it_is_quick_and_has_something_to_go_by(number, most, said, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.tsne.MOST_TSNE", most)
    features = torch.randn(number, 4)
    points, how = plane_points(features, seed=0)
    assert how.startswith(said)
    expected = tsne_points(features, perplexity=11 / 3, seed=0) if how.startswith("t-SNE") else pca_points(features)
    torch.testing.assert_close(points, expected)


def test_points_of_a_collapsed_encoder_are_one():
    points, how = plane_points(torch.ones(20, 3), seed=0)
    assert how == "PCA, of features that are all the same"
    torch.testing.assert_close(points, torch.zeros(20, 2))
