import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from voc_folder import SIZES, write_voc

from ssl_core.cli import main
from ssl_core.data.voc import VOC_CLASSES
from ssl_core.evaluate import evaluate_voc07, load_encoder, voc07
from ssl_core.evaluate.average_precision import average_precision
from ssl_core.evaluate.voc07 import multi_label_scores
from ssl_core.evaluate.voc07_protocol import VOC07_PROTOCOLS, with_difficult
from ssl_core.views import CenterCrop


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "voc")


@pytest.fixture
def evaluated(voc, run):
    def evaluate(encoder="pixels", **options):
        own = {"like": str(run)} if encoder == "pixels" else {}
        encoder = str(run) if encoder == "run" else encoder
        return evaluate_voc07(encoder, **own, **{"data": voc, "progress": False, **options})

    return evaluate


def test_separable_features_are_told_apart_whatever_the_shots(evaluated, capsys, tmp_path):
    result = evaluated(shots=[2, "full"], out=str(tmp_path))
    few, full = result["shots"]["2"], result["shots"]["full"]
    assert full["trials"] == [1.0]
    assert few["trials"] == [1.0] * 5
    assert (few["images"], few["fits"], few["std"]) == (40, 100, 0)
    assert (full["images"], full["fits"], full["cost"]) == (28, 20, 0.5)
    assert "std" not in full
    assert full["classes"] == dict.fromkeys(VOC_CLASSES, 1.0)
    *_, cost, lines, last = capsys.readouterr().out.splitlines()
    assert cost == "cost: 36 images through the encoder, 120 fits of an SVM"
    assert lines == (
        "voc07 2 shots mAP 100.00 std 0.00 (C 0.5, 5 draws of 40 images, 0 of 100 fits not converged, 8 images)"
    )
    assert last == "voc07 full mAP 100.00 (C 0.5, 0 of 20 fits not converged, 8 images)"
    assert json.loads((tmp_path / "voc07-svm.json").read_text()) == json.loads(json.dumps(result))
    assert result["differs"] == ["voc2007: 28 of 5,011 training images", "voc2007: 8 of 4,952 test images"]
    assert result["changed"] == ["shots"]
    assert result["difficult"] == "negative"
    assert result["splits"] == {"voc2007": {"train": 16, "validation": 12, "test": 8}}


def hard(name, number):
    """Labels that no color tells."""
    return 1 if (number * number + 3 * VOC_CLASSES.index(name)) % 11 < 4 else -1


def test_draws_differ_and_are_those_of_the_seed(tmp_path, run):
    data = write_voc(tmp_path / "voc", hard)
    options = {"data": data, "shots": [2], "trials": 3, "progress": False}
    first, second, third = (
        evaluate_voc07(str(run), seed=seed, **options)["shots"]["2"]["trials"] for seed in (0, 0, 1)
    )
    assert first == second
    assert len({*first, *third}) == 6


def test_of_several_costs_the_best_on_test_and_the_best_on_validation_are_both_said(evaluated, capsys, run):
    result = evaluated("run", shots=[1, "full"], cost=[1e-5, 10.0], trials=2)
    assert result["selection"] == "best on test and validation"
    for shots in ("1", "full"):
        found = result["shots"][shots]
        by_test, by_val = found["test_selected"], found["val_selected"]
        assert by_test["mean"] >= by_val["mean"]
        assert {by_test["cost"], by_val["cost"]} <= {1e-5, 10.0}
    assert result["shots"]["1"]["fits"] == result["shots"]["full"]["fits"] == 80  # 2 draws; training and all images
    *_, few, full = capsys.readouterr().out.splitlines()
    assert few.startswith("voc07 1 shots mAP test-selected ")
    assert ", val-selected " in few
    assert few.endswith(" (2 draws of 20 images, 0 of 80 fits not converged, 8 images)")
    assert full.startswith("voc07 full mAP test-selected ")


def test_the_labels_of_the_test_images_do_not_choose_the_cost_of_validation(tmp_path, run):
    options = {"shots": [3, "full"], "cost": [1.0, 100.0], "trials": 2, "progress": False}
    first_test = SIZES["train"] + SIZES["val"] + 1
    results = [
        evaluate_voc07(str(run), data=write_voc(tmp_path / f"{sign}", values), **options)["shots"]
        for sign, values in ((1, hard), (-1, lambda name, n: hard(name, n) * (-1 if n >= first_test else 1)))
    ]
    chosen = {
        name: [[each[shots][name]["cost"] for shots in ("3", "full")] for each in results]
        for name in ("val_selected", "test_selected")
    }
    assert chosen["val_selected"][0] == chosen["val_selected"][1]
    assert chosen["test_selected"][0] != chosen["test_selected"][1]


def test_each_class_of_vissl_has_a_draw_and_a_cost_of_its_own(evaluated, run, capsys):
    result = evaluated("run", protocol="svm_vissl", shots=[1, "full"], cost=[0.1, 10.0], trials=2)
    few, full = result["shots"]["1"], result["shots"]["full"]
    assert few["fits"] == 2 * 2 * 20
    assert few.keys() >= {"test_selected", "val_selected"}
    assert full["cost"].keys() == set(VOC_CLASSES)
    assert full["fits"] == (3 * 2 + 1) * 20
    assert "(C of each class by cross-validation, 0 of 140 fits not converged, 8 images)" in capsys.readouterr().out
    assert result["selection"] == "best on test and validation; of all images cross-validation"


def test_maps_are_pooled_to_four_by_windows_one_short_of_them(evaluated, run, monkeypatch):
    seen = []

    def spy(features):
        seen.append(features.shape)
        return features.astype(np.float64)

    monkeypatch.setattr(voc07, "unit_length", spy)
    evaluated("run", protocol="svm_vissl", shots=["full"], cost=[1.0])
    assert seen == [(28, 4 * 8), (8, 4 * 8)]
    maps = torch.arange(9.0).reshape(1, 1, 3, 3)
    pooled = voc07._PooledMaps(torch.nn.Module())
    pooled.encoder.forward_features = lambda images: maps
    assert pooled(maps).tolist() == [[2, 3, 5, 6]]


@pytest.mark.parametrize(
    ("difficult", "training", "tested", "area"),
    [
        ("negative", [1, -1, -1, 1, -1, 1], [1, -1, -1, 1, -1, 1], 2 / 3),
        ("vissl_full", [1, -1, -1, 1, -1, 1], [1, -1, 0, 1, -1, 1], 34 / 45),
        ("ignore", [1, -1, 0, 1, -1, 1], [1, -1, 0, 1, -1, 1], 34 / 45),
    ],
)
def test_difficult_objects_are_negatives_or_left_out(difficult, training, tested, area):
    values = np.array([[1], [-1], [0], [1], [-1], [1]])
    assert with_difficult(values, difficult, training=True)[:, 0].tolist() == training
    labels = with_difficult(values, difficult, training=False)[:, 0]
    assert labels.tolist() == tested
    assert average_precision(-np.arange(6.0), labels, "area") == pytest.approx(area, abs=1e-12)


def test_difficult_images_are_tested_as_their_mode_says(tmp_path, run):
    dog = VOC_CLASSES.index("dog") % 4
    first_test = SIZES["train"] + SIZES["val"] + 1
    difficult = next(number for number in range(first_test, 99) if number % 4 == dog)

    def values(name, number):
        return 0 if (name, number) == ("dog", difficult) else 1 if VOC_CLASSES.index(name) % 4 == number % 4 else -1

    data = write_voc(tmp_path / "voc", values)
    images = tmp_path / "voc/VOCdevkit/VOC2007/JPEGImages"
    shutil.copy(images / f"{difficult:06d}.jpg", images / f"{difficult + 4:06d}.jpg")
    found = {}
    for mode in ("negative", "vissl_full", "ignore"):
        options = {"data": data, "shots": ["full"], "difficult": mode, "progress": False}
        result = evaluate_voc07("pixels", like=str(run), **options)
        found[mode] = result["shots"]["full"]["classes"]["dog"]
        assert result["difficult"] == mode
    # The first of two equal images shows a difficult dog alone.
    assert found == {"negative": 0.5, "vissl_full": 1, "ignore": 1}


def test_four_numbers_of_a_classifier_worked_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3], [0.4, 0.6, 0.7], [0.9, 0.9, 0.95]])
    labels = np.array([[1, -1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, -1]])
    found = multi_label_scores(scores, labels)
    # Ranks over images: class 0: 0, 3, 2, 1 (equal scores in order); class 1: 3, 1, 2, 0; class 2: 3, 2, 0, 1.
    of_classes = [(1 + 2 / 4) / 2, 1 / 3, 1 / 3]
    assert found["map_area"] == pytest.approx(np.mean(of_classes))
    assert found["map_11_point"] == pytest.approx(np.mean([(6 + 5 * 2 / 4) / 11, 1 / 3, 1 / 3]))
    # Over classes: image 0: classes 0, 2 first; image 1: class 0 is last; image 2: class 1 is second. 3 shows none.
    assert found["image_ap"] == pytest.approx(np.mean([1, 1 / 3, 1 / 2]))
    assert found["first_present"] == pytest.approx(1 / 3)


def test_a_linear_classifier_learns_what_colors_mean_and_leaves_the_encoder_alone(evaluated, capsys, run, monkeypatch):
    encoders = []
    make = voc07.Classifier
    monkeypatch.setattr(
        voc07,
        "Classifier",
        lambda encoder, *args, **options: encoders.append(encoder) or make(encoder, *args, **options),
    )
    result = evaluated("run", protocol="clsa", epochs=12, batch_size=7, lr=0.5)
    assert result["map_area"] > 0.9
    assert result["first_present"] == 1
    expected = load_encoder(str(run))[0].state_dict()
    (encoder,) = encoders
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("voc07 class mAP area ")
    assert line.endswith("highest score present 100.00 (protocol clsa, 12 epochs, difficult negative, 8 images)")
    assert result["protocol"]["lr"] == 0.5
    assert json.loads((run / "voc07-clsa.json").read_text()) == json.loads(json.dumps(result))
    assert not list(run.glob("voc07-clsa-seed*"))


def test_the_loss_of_the_linear_classifier_is_summed_over_the_classes(evaluated, run, monkeypatch):
    trained = []
    make = voc07.make_linear

    def spy(*args):
        trained.append(make(*args))
        return trained[-1]

    monkeypatch.setattr(voc07, "make_linear", spy)
    monkeypatch.setattr(voc07, "HorizontalFlip", CenterCrop)
    monkeypatch.setattr(voc07, "RandomResizedCrop", lambda scale: CenterCrop())
    evaluated(protocol="clsa", epochs=1, batch_size=28)
    (linear,) = trained
    images = [Image.open(file) for file in sorted((run.parent / "voc/VOCdevkit/VOC2007/JPEGImages").glob("*"))[:28]]
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    features = ((pixels - mean) / std).flatten(1)
    labels = torch.tensor([[float(c % 4 == number % 4) for c in range(20)] for number in range(1, 29)])
    step = make(768, 20, "normal", 0)
    loss = F.binary_cross_entropy_with_logits(step(features), labels, reduction="none").sum(dim=1).mean()
    loss.backward()
    assert linear.weight.detach() == pytest.approx((step.weight - 0.05 * step.weight.grad).detach(), abs=1e-5)


def test_a_class_without_a_test_image_is_left_out_and_said(tmp_path, run, capsys):
    first_test = SIZES["train"] + SIZES["val"] + 1

    def values(name, number):
        if name == "cow":
            return 1 if number < first_test and number % 3 == 0 else -1
        return 1 if VOC_CLASSES.index(name) % 4 == number % 4 else -1

    data = write_voc(tmp_path / "voc", values)
    result = evaluate_voc07("pixels", like=str(run), data=data, shots=["full"], progress=False)
    assert result["shots"]["full"]["classes"]["cow"] is None
    assert result["shots"]["full"]["mean"] == 1
    assert capsys.readouterr().out.endswith(", 8 images, without cow, which no test image shows)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": [0]}, "shots 0 is neither a number of images from 1 on nor full, as in"),
        ({"shots": ["half"]}, "shots 'half' is neither a number of images from 1 on nor full"),
        ({"shots": [True]}, "shots True is neither"),
        ({"shots": [8]}, "shots 8: SVMs need 8 training images with aeroplane, and its lists have 7; give fewer"),
        (
            {"encoder": "run", "protocol": "svm_vissl", "shots": [2]},
            "shots 2: SVMs need 38 training images without aeroplane, .* have 21",
        ),
        (
            {"encoder": "run", "protocol": "svm_vissl", "shots": [8]},
            "shots 8: SVMs need 8 training images with aeroplane",
        ),
        (
            {"protocol": "clsa", "shots": [1]},
            r"protocol clsa has no shots to set to \(1,\); protocols that do: svm, svm_",
        ),
        ({"protocol": "clsa", "difficult": "ignore"}, "protocol clsa has no difficult to set to ignore"),
        ({"epochs": 3}, "protocol svm has no epochs to set to 3; protocols that do: clsa"),
        ({"protocol": "svn"}, "there is no protocol 'svn'; choose one of svm, svm_vissl, clsa"),
        ({"shots": []}, r"shots needs one value or several that differ, got \[\]"),
        ({"shots": ["full", 2, 2]}, r"shots needs one value or several that differ, got \['full', 2, 2\]"),
        ({"cost": []}, r"cost needs one value or several that differ, got \[\]"),
        ({"shots": 8}, "shots 8: SVMs need 8 training images with aeroplane"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"cost": [0.0]}, r"cost must be positive, got \(0.0,\)"),
        (
            {"protocol": "svm_vissl", "features": "backbone"},
            "pools an encoder's last maps to 2 x 2, and pixels has none",
        ),
        ({"data": None}, "voc07 needs data.root, the folder that holds VOCdevkit"),
    ],
)
def test_what_does_not_fit_is_refused_before_images_are_read(evaluated, options, message, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.voc07.decoded", None)
    with pytest.raises(ValueError, match=message):
        evaluated(**options)


def test_a_class_that_no_training_image_shows_is_refused(tmp_path, run):
    data = write_voc(tmp_path / "voc", lambda name, number: -1 if name == "cow" else 2 * (number % 2) - 1)
    with pytest.raises(ValueError, match="shots full: SVMs need 1 training images with cow, and its lists have 0"):
        evaluate_voc07("pixels", like=str(run), data=data, shots=["full"], dry_run=True)


@pytest.mark.parametrize("protocol", VOC07_PROTOCOLS)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(protocol, voc, run, capsys):
    options = {"svm": ["--shots=full", "--cost=1"], "svm_vissl": ["--shots=[1,full]"], "clsa": []}[protocol]
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    encoder = str(run / "backbone.safetensors")  # which names no data of its own
    main(["eval", "voc07", encoder, "--protocol", protocol, "--data.root", voc.root, "--dry_run", *options])
    printed = capsys.readouterr().out
    assert printed.startswith(f"protocol {protocol}: {VOC07_PROTOCOLS[protocol].source}\n")
    assert "voc2007: train 16, validation 12, test 8 images\nselection: " in printed
    expected = {
        "svm": "36 images through the encoder, 20 fits of an SVM",
        "svm_vissl": "36 images through the encoder, 1,780 fits of an SVM",
        "clsa": "2,808 images through the frozen encoder",
    }
    assert printed.endswith(f"cost: {expected[protocol]}\n")
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_the_command_takes_no_other_images(voc, run, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "voc07", str(run), "--data.root", voc.root, "--data.source", "digits"])
    assert "data.source" in capsys.readouterr().err
