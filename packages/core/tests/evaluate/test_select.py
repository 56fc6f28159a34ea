import json
import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from ssl_core.data import DataConfig, open_encoded
from ssl_core.evaluate import k_center, select, typiclust

QUIET = {"progress": False}


def at(*degrees):
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# Eight near 0 degrees, the middle of which is 3; six near 90, the middle is 10; four near 180, too few for a cluster.
ROWS = at(-20, -12, -4, 0, 1, 6, 14, 25, 70, 80, 90, 92, 98, 110, 178, 179, 180, 181)


def test_the_most_typical_of_the_largest_cluster_comes_first():
    assert typiclust(ROWS, 3) == [3, 11, 4]  # no cluster without a label is left, so that of the fewest is next
    assert typiclust(3 * ROWS, 3) == [3, 11, 4]


def test_a_cluster_that_has_a_label_comes_last():
    assert typiclust(ROWS, 2, labelled=torch.tensor([7])) == [11, 3]


def test_small_clusters_are_taken_when_no_other_image_is_left():
    assert sorted(typiclust(ROWS, 18)) == [*range(18)]
    assert sorted(typiclust(ROWS, 4, labelled=torch.arange(14))) == [14, 15, 16, 17]


@pytest.mark.filterwarnings("error")
def test_clusters_without_an_image_of_their_own_are_no_matter():
    assert sorted(typiclust(ROWS[:2].repeat(6, 1), 8)) == sorted({*typiclust(ROWS[:2].repeat(6, 1), 8)})


def test_typicality_is_by_the_twenty_nearest_of_the_cluster():
    unit = F.normalize(torch.randn(60, 4) + torch.tensor([1.0, 0, 0, 0]), dim=1)
    distance = torch.cdist(unit, unit).sort(dim=1).values[:, 1:21].mean(dim=1)
    assert typiclust(unit, 1) == [int(distance.argmin())]


def test_each_center_is_the_farthest_from_those_before():
    assert k_center(ROWS, 3, labelled=torch.tensor([3])) == [16, 10, 7]


def test_no_center_is_chosen_twice_though_all_are_equal():
    assert sorted(k_center(torch.ones(5, 3), 5)) == [*range(5)]


def test_a_first_center_is_random_and_the_seeds():
    first = {k_center(ROWS, 1, seed=seed)[0] for seed in range(8)}
    assert len(first) > 2
    assert k_center(ROWS, 4, seed=1) == k_center(ROWS, 4, seed=1)


@pytest.mark.parametrize("by", ["typiclust", "kcenter", "random"])
def test_a_list_of_the_chosen_is_written_which_is_a_source(run, tmp_path, capsys, by):
    result = select(str(run), count=4, by=by, **QUIET)
    assert json.loads((run / "selected.json").read_text()) == result
    assert len({*result["images"]}) == 4
    listed = open_encoded(DataConfig(source=str(run / "selected.csv")))
    assert [listed.identifier(index) for index in range(4)] == result["images"]
    assert f"wrote {run}/selected.csv: 4 of the 15 images" in capsys.readouterr().out
    # Those that have labels by then are not chosen again, up to the last one.
    (tmp_path / "more").mkdir()
    more = select(str(run), count=11, by=by, labelled=str(run / "selected.csv"), out=str(tmp_path / "more"), **QUIET)
    assert {*more["images"]} | {*result["images"]} == {
        open_encoded(run_source(run)).identifier(index) for index in range(15)
    }


def run_source(run):
    return DataConfig(source=str(run.parent / "images"), workers=0)


@pytest.mark.parametrize("by", ["typiclust", "random"])
def test_broken_images_are_not_chosen(run, tmp_path, by):
    broken = tmp_path / "images/train/dark/0.png"
    broken.write_bytes(b"")
    data = DataConfig(source=str(tmp_path / "images"), workers=0, broken_limit=0.2)
    assert str(broken) not in select(str(run), count=14, by=by, data=data, **QUIET)["images"]
    (run / "selected.csv").unlink()
    with pytest.raises(ValueError, match="count 15 is more than the 14 images"):
        select(str(run), count=15, by=by, data=data, **QUIET)


def test_images_without_files_may_be_chosen_and_are_named_in_the_result(run, toy_source, monkeypatch):
    monkeypatch.setattr(import_module("ssl_core.evaluate.select"), "open_encoded", lambda *_: toy_source([0, 0, 1]))
    result = select(str(run), count=2, **QUIET)
    assert {*result["images"]} < {"toy:0", "toy:1", "toy:2"}
    assert not (run / "selected.csv").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 16}, "count 16 is more than the 15 images"),
        ({"count": 15, "labelled": "list.csv"}, "count 15 is more than the 14 images"),
        ({"count": 1, "labelled": "nowhere.csv"}, "there is no list nowhere.csv"),
        ({"count": 1, "labelled": "other.csv"}, "1 images of other.csv are none of"),
        ({"count": 1, "out": "nowhere"}, "there is no folder nowhere"),
        ({"count": 1, "out": "there"}, "is there already, perhaps with labels by now"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_chosen_is_refused_before_features(run, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/selected.csv").write_text("path\n")
    (tmp_path / "list.csv").write_text("path,label\nimages/train/dark/0.png,dark\n")
    (tmp_path / "other.csv").write_text("images/val/dark/0.png\n")
    monkeypatch.setattr(
        import_module("ssl_core.evaluate.select"), "decoded", lambda *_: pytest.fail("images are decoded")
    )
    with pytest.raises((ValueError, OSError), match=message):
        select(str(run), **settings, **QUIET)
