import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssl_core.data import DataConfig
from ssl_core.evaluate import evaluate_transfer, load_subject
from ssl_core.evaluate import transfer as transfer_module
from ssl_core.evaluate.logistic import Limits
from ssl_core.evaluate.metric import metric_score
from ssl_core.evaluate.transfer import (
    PENALTIES,
    TRANSFER_PROTOCOLS,
    Examples,
    draw_validation,
    linear_transfer,
    open_task,
    transfer_view,
)

QUIET = {"progress": False}


@pytest.fixture
def few_penalties(monkeypatch):
    monkeypatch.setattr(transfer_module, "PENALTIES", (0.01, 1.0, 100.0))


def test_the_grid_is_that_of_the_reference():
    np.testing.assert_allclose(PENALTIES, np.logspace(-6, 5, 45))


def test_validation_images_are_the_first_fifth_of_the_references_shuffle(toy_source):
    order = list(range(23))
    np.random.RandomState(0).shuffle(order)
    drawn = draw_validation(toy_source([0] * 23), "shuffled", seed=7)
    assert drawn.tolist() == order[:4]


def test_a_fifth_of_each_class_is_drawn_by_a_seed(toy_source):
    images = toy_source([0] * 10 + [1] * 8 + [2] * 4)
    drawn = draw_validation(images, "by_class")
    assert images.labels[drawn].tolist() == [0, 0, 1, 1, 2]
    assert not torch.equal(drawn, draw_validation(images, "by_class", seed=1))


@pytest.mark.parametrize(("how", "labels"), [("shuffled", [0, 0, 1, 1]), ("by_class", [0, 1, 2])])
def test_too_few_images_for_validation_are_refused(toy_source, how, labels):
    with pytest.raises(ValueError, match=r"leave none for validation|is left to choose settings by"):
        draw_validation(toy_source(labels), how)


def blobs(num_images, *, seed, num_classes=3):
    """Features of classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    return Examples(F.one_hot(labels, 5) + 0.7 * torch.randn(num_images, 5, generator=generator), labels)


def test_mean_per_class_counts_each_class_that_occurs_once():
    # Of the three images of class 0 two are right, and that of class 2 is; class 1 has none.
    scores, labels = torch.eye(3).double()[[0, 0, 2, 2]], torch.tensor([0, 0, 0, 2])
    assert metric_score("top1", scores, labels) == 3 / 4
    assert metric_score("mean_per_class", scores, labels) == pytest.approx((2 / 3 + 1) / 2)


def test_map11_is_the_mean_over_classes_and_what_is_not_1_is_negative():
    # By falling score the labels of the first class are 1 0 1 0 0 1, and 8 / 11 its average precision; 0 is difficult.
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]]).double().T
    labels = torch.tensor([[1, -1, 1, 0, -1, 1], [-1, -1, -1, -1, -1, 1]]).T
    assert metric_score("map11", scores, labels) == pytest.approx((8 / 11 + 1) / 2)
    assert metric_score("map11", scores[:, 1:], labels[:, 1:], "sklearn") == 1


@pytest.mark.parametrize("name", TRANSFER_PROTOCOLS)
def test_the_test_labels_choose_nothing(name, few_penalties):
    labelled, test = blobs(60, seed=0), blobs(30, seed=1)
    is_validation = torch.arange(60) < 12
    found = linear_transfer(labelled, is_validation, test, 3, "top1", TRANSFER_PROTOCOLS[name])
    permuted = test._replace(labels=test.labels.roll(1))
    other = linear_transfer(labelled, is_validation, permuted, 3, "top1", TRANSFER_PROTOCOLS[name])
    assert found._replace(score=other.score) == other
    assert other.score < 0.5 < found.score


def test_all_labelled_images_are_fitted_in_the_end_from_the_weights_of_the_grids_last(few_penalties, monkeypatch):
    fits = []
    fit_classifier = transfer_module.fit_classifier

    def recorded(features, labels, *arguments, start, **options):
        fits.append((len(labels), start))
        assert options["binomial"] == (len(fits) == 2)
        return fit_classifier(features, labels, *arguments, start=start, **options)

    monkeypatch.setattr(transfer_module, "fit_classifier", recorded)
    labelled = blobs(60, seed=0)
    is_validation = torch.arange(60) < 12
    for name in ("ssl_transfer", "converged"):
        linear_transfer(labelled, is_validation, blobs(30, seed=1), 3, "top1", TRANSFER_PROTOCOLS[name])
    (warm_images, warm), (cold_images, cold) = fits
    assert (warm_images, cold_images, cold) == (60, 60, None)
    grid = transfer_module.choose_penalty(
        *labelled.where(~is_validation), 3, transfer_module.PENALTIES, lambda _: 0.0, limits=Limits()
    )
    assert torch.equal(warm, grid.last)


def test_fits_that_do_not_converge_are_counted_and_an_end_of_the_grid_is_marked(few_penalties):
    protocol = dataclasses.replace(TRANSFER_PROTOCOLS["ssl_transfer"], limits=Limits(iterations=1))
    labelled = blobs(60, seed=0)
    found = linear_transfer(labelled, torch.arange(60) < 12, blobs(30, seed=1), 3, "top1", protocol)
    assert (found.not_converged, found.converged, found.iterations) == (3, False, 1)
    assert found.at_end == (found.penalty in (0.01, 100.0))
    assert found.C * found.penalty == 1


def test_the_view_is_not_enlarged_before_its_crop():
    assert transfer_view(224).ops[0].short_side in (None, 224)
    assert transfer_view(224).ops[0].interpolation == "bicubic"


def test_transfer_of_a_run_prints_its_plan_and_line_and_writes_it_twice_the_same(run, few_penalties, capsys):
    result = evaluate_transfer(str(run), **QUIET)
    lines = capsys.readouterr().out.splitlines()
    images = str(run.parent / "images" / "train")
    assert f"{images}: train 12, validation 3, test 9 images" in lines
    found = result["sets"][images]
    assert lines[-1].startswith(f"transfer {images} top1 {100 * found['score']:.2f} (validation ")
    assert (found["num_train"], found["num_validation"], found["num_test"]) == (12, 3, 9)
    assert (found["metric"], found["num_classes"], found["num_tested_classes"]) == ("top1", 3, 3)
    assert (result["protocol"]["name"], result["selection"], result["image_size"]) == ("ssl_transfer", "validation", 16)
    assert json.loads((run / "transfer-ssl_transfer.json").read_text()) == json.loads(json.dumps(result))
    assert evaluate_transfer(str(run), **QUIET) == result


@pytest.mark.slow
def test_transfer_to_several_sets_has_each_ones_metric_and_own_validation_images(root, run, few_penalties, capsys):
    data = DataConfig(root=str(root), workers=0)
    sets = ["pets", "dtd", "voc2007"]
    result = evaluate_transfer("pixels", like=str(run), sets=sets, data=data, out=str(run), **QUIET)
    metrics = {name: (each["metric"], each.get("difficult")) for name, each in result["sets"].items()}
    assert metrics == {"pets": ("mean_per_class", None), "dtd": ("top1", None), "voc2007": ("map11", "negative")}
    assert result["splits"] == {
        "pets": {"train": 10, "validation": 2, "test": 12},
        "dtd": {"train": 6, "validation": 6, "test": 6},
        "voc2007": {"train": 10, "validation": 10, "test": 10},
    }
    pets, dtd, voc = result["sets"].values()
    assert (pets["score"], dtd["score"]) == (1, 1)
    assert voc["score"] > 0.5
    assert (voc["num_classes"], voc["num_tested_classes"]) == (20, 5)
    assert pets["differs"] == ["pets: 12 of 3,680 training images", "pets: 12 of 3,669 test images"]
    assert result["mean"] == pytest.approx((2 + voc["score"]) / 3)
    *_, of_voc, mean = capsys.readouterr().out.splitlines()
    assert of_voc.endswith("10 images, 15 classes without any left out)")
    assert mean == f"transfer mean {100 * result['mean']:.2f} (3 sets, protocol ssl_transfer)"
    assert json.loads((run / "transfer-ssl_transfer.json").read_text())["mean"] == result["mean"]


def test_official_validation_images_are_those_that_choose(root):
    data = DataConfig(source="dtd", root=str(root), workers=0)
    task = open_task(data, None, TRANSFER_PROTOCOLS["ssl_transfer"], seed=0)
    held_out = task.is_validation.nonzero().flatten().tolist()
    assert {int(Path(task.labelled.identifier(index)).stem) for index in held_out} == set(range(6, 12))


def test_a_missing_list_of_the_last_set_is_said_before_the_first_is_read(root, run, monkeypatch):
    monkeypatch.setattr(transfer_module, "run_task", None)
    (root / "dtd/labels/val1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val1\.txt is not there: the folder labels"):
        evaluate_transfer("pixels", like=str(run), sets=["pets", "dtd"], data=DataConfig(root=str(root)), **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "ssl-transfer"}, "no protocol 'ssl-transfer'; choose one of ssl_transfer, converged"),
        ({"sets": ["pets", "dogs"]}, r"sets \['dogs'\] are none of digits, .*, or all, or all12; images of your own"),
        ({"sets": []}, r"sets \[\] are none of"),
        ({"sets": "all"}, "'food101' needs data.root"),
        ({"sets": ["digits"], "metric": "top1"}, "metric top1: each of sets has its own"),
        ({"image_size": -8}, r"run does not take images of image_size -8 \(.*\); it was trained with 16"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(run, monkeypatch, options, message):
    monkeypatch.setattr(transfer_module, "run_task", None)
    with pytest.raises(ValueError, match=message):
        evaluate_transfer(str(run), **options, **QUIET)


def test_images_are_read_with_the_encoders_channels_unless_others_are_asked_for(run):
    for channels, read in ((None, 3), (1, 1)):
        data = DataConfig(source="digits", channels=channels)
        assert load_subject(str(run), data=data).fitted(None).data.channels == read


def test_a_metric_of_one_label_is_refused_for_several(root, run):
    data = DataConfig(source="voc2007", root=str(root))
    with pytest.raises(ValueError, match="metric top1 is of one class an image, and those of voc2007 show several"):
        evaluate_transfer(str(run), data=data, metric="top1", **QUIET)


def test_own_images_are_scored_by_average_precision_where_that_is_asked_for(run, few_penalties):
    (found,) = evaluate_transfer(str(run), metric="map11", **QUIET)["sets"].values()
    assert found["metric"] == "map11"
    assert 1 / 3 < found["score"] <= 1
    assert "difficult" not in found


def test_a_last_fit_that_has_not_converged_is_a_warning_where_all_should(run, few_penalties, monkeypatch, caplog):
    short = dataclasses.replace(TRANSFER_PROTOCOLS["converged"], limits=Limits(iterations=1))
    monkeypatch.setitem(TRANSFER_PROTOCOLS, "converged", short)
    evaluate_transfer(str(run), protocol="converged", **QUIET)
    assert "the last fit has not converged in 1 iterations: its gradient is up to " in caplog.text


def test_a_dry_run_prints_the_plan_and_neither_reads_nor_writes(run, capsys, monkeypatch):
    monkeypatch.setattr(transfer_module, "run_task", None)
    evaluate_transfer(str(run), dry_run=True, protocol="converged", **QUIET)
    printed = capsys.readouterr().out
    assert printed.startswith("protocol converged: ")
    assert printed.endswith("cost: 24 images through the encoder at 16 px, 46 fits\n")
    assert not (run / "transfer-converged.json").exists()


def test_broken_images_are_left_out_and_the_others_stay_where_they_were(run, few_penalties, capsys):
    train = run.parent / "images" / "train"
    kept = evaluate_transfer(str(run), **QUIET)["sets"][str(train)]
    shutil.copy(train / "dark" / "0.png", train / "dark" / "00.png")
    (train / "dark" / "00.png").write_bytes(b"\x89PNG broken")
    data = DataConfig(source=str(run.parent / "images"), workers=0, broken_limit=0.1)
    found = evaluate_transfer(str(run), data=data, **QUIET)["sets"][str(train)]
    assert found["num_train"] + found["num_validation"] == kept["num_train"] + kept["num_validation"] == 15
