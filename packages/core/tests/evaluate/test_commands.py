import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_core.backbone import load_backbone, load_card
from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import (
    draw_neighbours,
    embed,
    evaluate_knn,
    evaluate_linear,
    evaluation_view,
    export,
    extract_features,
    knn_accuracy,
    run_data,
)

QUIET = {"progress": False}


def expected_features(run, encoder, card, split):
    source = open_source(run_data(str(run)), split=split)
    return extract_features(encoder, source, evaluation_view(16), mean=card.mean, std=card.std)


def test_knn_of_a_run_prints_its_line_and_writes_it(run, method, card, capsys):
    train, test = (expected_features(run, method["encoder"], card, split) for split in ("train", "test"))
    accuracy = knn_accuracy(train.features, train.labels, test.features, test.labels, k=5, num_classes=3)
    result = evaluate_knn(str(run), k=5, **QUIET)
    assert result["top1"] == accuracy
    assert capsys.readouterr().out == f"knn top1 {100 * accuracy:.2f} (k=5, T=0.1, 9 images)\n"
    assert json.loads((run / "knn.json").read_text()) == result
    assert (result["num_train"], result["num_test"], result["features"]) == (15, 9, "backbone")


def test_top5_is_reported_from_ten_classes_on(run, tmp_path, card):
    rows = [f"images/train/{name}/{n}.png\t{label}" for label, name in enumerate(("dark", "gray")) for n in range(5)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join([*rows, *(f"{row[:-1]}{n}" for n, row in enumerate(rows))]))
    data = DataConfig(str(tmp_path / "train.txt"), str(tmp_path / "test.txt"), workers=0)
    result = evaluate_knn(str(run), data=data, k=20, **QUIET)
    assert 0 <= result["top1"] <= result["top5"] <= 1
    assert "top5" not in evaluate_knn(str(run), k=5, **QUIET)


def test_projections_pixels_and_a_random_encoder_are_compared_on_the_same_data(run):
    results = {
        "backbone": evaluate_knn(str(run), k=5, **QUIET),
        "projection": evaluate_knn(str(run), features="projection", k=5, **QUIET),
        "random": evaluate_knn("random", like=str(run), k=5, **QUIET),
        "pixels": evaluate_knn("pixels", like=str(run), k=5, **QUIET),
    }
    assert {result["num_test"] for result in results.values()} == {9}
    assert results["pixels"]["architecture"] == "pixels"
    assert json.loads((run / "knn.json").read_text()) == results["projection"]


def test_a_baseline_is_written_only_where_it_is_told_to(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluate_knn("pixels", like=str(run), k=5, **QUIET)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    evaluate_knn("pixels", like=str(run), k=5, out=str(tmp_path / "elsewhere"), **QUIET)
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["knn.json"]
    assert not (run / "knn.json").exists()


def test_knn_holds_images_out_of_a_source_without_a_test_split(run, tmp_path, capsys):
    data = DataConfig(source=str(tmp_path / "images" / "train"), holdout=0.4, workers=0)
    result = evaluate_knn(str(run), data=data, k=3, **QUIET)
    assert (result["holdout"], result["num_train"], result["num_test"]) == (0.4, 9, 6)
    assert "6 images)" in capsys.readouterr().out


def test_k_beyond_the_training_images_is_refused(run):
    with pytest.raises(ValueError, match="k is 200, but there are 15 images"):
        evaluate_knn(str(run), **QUIET)


def test_data_without_labels_is_refused(run, tmp_path):
    data = DataConfig(str(tmp_path / "images/train/dark"), str(tmp_path / "images/val/dark"), workers=0)
    with pytest.raises(ValueError, match="3 of 3 test images have no label"):
        evaluate_knn(str(run), data=data, k=3, **QUIET)


def test_linear_prints_its_protocol_and_its_line(run, capsys):
    result = evaluate_linear(str(run), protocol="moco", epochs=2, lr=0.5, batch_size=5, **QUIET)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  2 epochs, batch 5, sgd, lr 0.5, divided by 10 after epochs 1 and 2"
    line = f"linear top1 last {100 * result['last']:.2f} best {100 * result['best']:.2f}"
    assert lines[-1] == f"{line} (protocol moco, 2 epochs, 9 images)"
    assert json.loads((run / "linear.json").read_text()) == json.loads(json.dumps(result))
    assert result["changed"] == ["batch_size", "epochs", "lr"]


def test_a_cached_probe_says_so(run, capsys):
    evaluate_linear(str(run), protocol="cached", epochs=2, batch_size=5, **QUIET)
    out = capsys.readouterr().out
    assert "train: as test, features extracted once" in out
    assert "(protocol cached, 2 epochs, 9 images)" in out


@pytest.mark.parametrize(
    ("crop", "text"),
    [
        ("random", "resized to 18 x 18 (bilinear), random resized crop 16 of area 0.2 to 1"),
        ("random_window", "resized to 18 x 18 (bilinear), random crop 16"),
    ],
)
def test_linear_tests_random_crops_over_seeds_and_says_which(run, capsys, crop, text):
    options = {"protocol": "cached", "epochs": 2, "batch_size": 5, "crop": crop, "crop_seeds": 4, "seed": 7}
    result = evaluate_linear(str(run), **options, **QUIET)
    scores = torch.tensor(result["random_crops"], dtype=torch.float64)
    assert len(scores) == 4
    line = f"linear top1 random crops {100 * scores.mean():.2f} std {100 * scores.std():.2f} (4 seeds; {text})"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert (result["crop"], result["crop_seeds"]) == (text, [7, 8, 9, 10])
    assert result["random_crops_mean"] == pytest.approx(scores.mean().item())
    assert json.loads((run / "linear.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_seeds": 5}, "crop_seeds 5 are of random crops: give crop random or random_window too"),
        ({"crop": "random", "crop_seeds": 2}, "crop_seeds must be at least 3 for a mean and its spread, got 2"),
    ],
    ids=["centre", "two"],
)
def test_seeds_of_random_crops_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_linear("nowhere", **options)


def test_an_unknown_protocol_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="no protocol 'best'"):
        evaluate_linear("nowhere", protocol="best")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_are_the_features_with_identifiers_and_labels(run, method, card, tmp_path, suffix):
    path = embed(str(run), str(tmp_path / f"features{suffix}"), split="test", **QUIET)
    if suffix == ".npz":
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    else:
        table = pq.read_table(path)
        assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[8]"
        found = {
            "features": np.array(table["features"].to_pylist(), dtype=np.float32),
            "labels": np.array(table["label"]),
            "identifiers": np.array(table["identifier"].to_pylist()),
        }
    expected = expected_features(run, method["encoder"], card, "test")
    np.testing.assert_array_equal(found["features"], expected.features.numpy())
    assert found["labels"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["identifiers"][3] == str(tmp_path / "images/val/dark/0.png")


def test_projections_can_be_embedded(run, method, card, tmp_path):
    with np.load(embed(str(run), str(tmp_path / "x.npz"), features="projection", **QUIET)) as file:
        found = torch.from_numpy(file["features"])
    backbone = expected_features(run, method["encoder"], card, "train").features
    torch.testing.assert_close(found, method["projector"](backbone).detach())


def test_embed_refuses_what_it_cannot_write_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz or \.parquet, not '.*\.csv'"):
        embed("nowhere", str(tmp_path / "x.csv"))
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing to write x\.npz to"):
        embed("nowhere", str(tmp_path / "missing" / "x.npz"))


def test_an_export_is_the_last_checkpoint(run, method, tmp_path):
    path = export(str(run), str(tmp_path / "exported.safetensors"))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_backbone(path)(images), method["encoder"](images))
    assert load_card(tmp_path / "exported.json") == load_card(run / "backbone.json")


def test_neighbours_are_drawn_to_a_png(run, tmp_path):
    path = draw_neighbours(str(run), str(tmp_path / "neighbours.png"), rows=4, k=3, **QUIET)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 3 * 3 * 64
    with pytest.raises(FileNotFoundError, match="no folder"):
        draw_neighbours(str(run), str(tmp_path / "missing" / "x.png"), **QUIET)


def test_images_of_other_channels_than_the_encoders_are_refused(run, tmp_path):
    data = dataclasses.replace(run_data(str(run)), channels=1)
    with pytest.raises(ValueError, match=r"has 1 channels but the encoder takes 3; set data\.channels to 3"):
        evaluate_knn(str(run), data=data, k=5, **QUIET)
