"""Subsets of a made ImageNet: ten classes of thirty empty files."""

import itertools
from dataclasses import replace

import pytest
import torch

from ssl_core.data import DataConfig, open_encoded
from ssl_core.data.files import folder_images
from ssl_core.data.subset import balanced_subset, listed_subset, selection_split, subset_digest


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet") / "train"
    for number in range(10):
        of_class = folder / f"n{number:08}"
        of_class.mkdir(parents=True)
        for image in range(30):
            (of_class / f"n{number:08}_{image}.JPEG").touch()
    return folder_images(folder)


@pytest.fixture
def listed(imagenet, tmp_path):
    def from_lines(*lines):
        (tmp_path / "1percent.txt").write_text("\n".join(lines) + "\n")
        return listed_subset(imagenet, str(tmp_path / "1percent.txt"))

    return from_lines


def names(images, indices):
    return {images.identifier(index).rpartition("/")[2] for index in indices.tolist()}


ALL = [f"n{number:08}_7.JPEG" for number in range(10)]


def test_a_list_names_files_or_the_ends_of_paths(listed, imagenet):
    assert names(imagenet, listed(*ALL)) == set(ALL)
    assert names(imagenet, listed(*(f"{name[:9]}/{name}" for name in ALL))) == set(ALL)
    assert torch.equal(listed(*ALL), listed(*reversed(ALL)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [*ALL, *(f"n{n}.JPEG" for n in range(7))],
            r"7 of 17 lines match no labeled image of .*train: n0.*n4.JPEG, ...",
        ),
        ([*ALL, "train/n00000000_7.JPEG"], r"1 of 11 lines match no labeled image"),
        ([*ALL, ALL[3]], f"2 of 11 lines name an image that another line names too: {ALL[3]}, {ALL[3]}$"),
        (ALL[1:], r"1percent\.txt has no image of 1 classes: n00000000"),
    ],
)
def test_lists_that_do_not_fit_are_refused(listed, lines, message):
    with pytest.raises(ValueError, match=message):
        listed(*lines)


def test_a_name_of_several_images_is_refused_and_more_of_its_path_tells_them_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").touch()
    images = folder_images(tmp_path / "images")
    list_file = tmp_path / "list.txt"
    list_file.write_text("0.png\n")
    with pytest.raises(ValueError, match=r"1 of 1 lines match several images; write more of their paths: 0\.png"):
        listed_subset(images, str(list_file))
    list_file.write_text("b/0.png\na/0.png\n")
    assert listed_subset(images, str(list_file)).tolist() == [0, 1]


def test_images_without_file_names_have_no_list_but_fractions(imagenet):
    digits = open_encoded(DataConfig("digits"))
    with pytest.raises(ValueError, match="names files, and digits has none; give a fraction instead"):
        listed_subset(digits, "1percent.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no list nowhere\.txt of the images to train on"):
        listed_subset(imagenet, "nowhere.txt")
    assert digits.labels[balanced_subset(digits, 0.1, seed=0)].bincount().tolist()[:3] == [14, 14, 14]


def test_fractions_are_balanced_and_smaller_ones_are_parts_of_larger_ones(imagenet):
    chosen = [balanced_subset(imagenet, fraction, seed=0) for fraction in (0.01, 0.05, 0.1, 0.5, 1.0)]
    counts = [imagenet.labels[indices].bincount(minlength=10).unique().tolist() for indices in chosen]
    assert counts == [[1], [2], [3], [15], [30]]
    for small, large in itertools.pairwise(chosen):
        assert set(small.tolist()) < set(large.tolist())
    assert not torch.equal(chosen[2], balanced_subset(imagenet, 0.1, seed=1))


def test_a_fraction_depends_on_names_and_not_on_the_order_of_files_and_classes(imagenet):
    order = torch.randperm(300)
    shuffled = imagenet.subset(order)
    # The classes in another order too.
    shuffled = replace(shuffled, labels=9 - shuffled.labels, classes=imagenet.classes[::-1])
    subsets = [images.subset(balanced_subset(images, 0.1, seed=0)) for images in (imagenet, shuffled)]
    assert names(subsets[0], torch.arange(30)) == names(subsets[1], torch.arange(30))
    assert subset_digest(subsets[0]) == subset_digest(subsets[1])


def test_the_digest_of_a_subset_is_the_same_in_every_process_and_place(imagenet):
    assert subset_digest(imagenet.subset(balanced_subset(imagenet, 0.1, seed=0))) == "6aa67c8c626e4764422c546e6da4af9d"
    assert subset_digest(imagenet) != subset_digest(imagenet.subset(torch.arange(299)))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_of_0_to_1_is_refused(imagenet, fraction):
    with pytest.raises(ValueError, match=rf"fraction must be in \(0, 1\], got {fraction}"):
        balanced_subset(imagenet, fraction, seed=0)


def test_settings_are_chosen_by_images_held_out_of_each_class(imagenet):
    used = balanced_subset(imagenet, 0.5, seed=0)
    train, held = selection_split(imagenet, used, 0.2, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == used.tolist()
    assert imagenet.labels[held].bincount().tolist() == [3] * 10
    one_each = balanced_subset(imagenet, 0.01, seed=0)
    with pytest.raises(ValueError, match=r"no image of .* is left to choose settings by: 10 of 300 are trained on"):
        selection_split(imagenet, one_each, 0.2, seed=0)


def test_or_by_so_many_of_the_images_whose_labels_are_not_trained_on(imagenet):
    used = balanced_subset(imagenet, 0.5, seed=0)
    train, held = selection_split(imagenet, used, 100, seed=0)
    assert torch.equal(train, used)
    assert len(held) == 100
    assert not set(held.tolist()) & set(used.tolist())
    assert len(selection_split(imagenet, used, 10_009, seed=0)[1]) == 150
    with pytest.raises(ValueError, match="300 of 300 are trained on"):
        selection_split(imagenet, torch.arange(300), 10_009, seed=0)
