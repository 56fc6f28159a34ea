import dataclasses
import json
import shutil
import statistics
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from ssl_core.backbone import BackboneCard, load_backbone, load_card, make_card_encoder, save_backbone, save_card
from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import (
    FINETUNE_PROTOCOLS,
    Subject,
    draw_tsne,
    embed,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluate_similarity,
    evaluate_transfer,
    evaluate_voc07,
    evaluation_view,
    export,
    extract_features,
    fine_tune,
    inter_class_similarity,
    intra_class_similarity,
    knn_accuracy,
    run_data,
    transfer,
)
from ssl_core.evaluate.accuracy import balanced_text
from ssl_core.evaluate.classifier import load_classifier

QUIET = {"progress": False}


def expected_features(run, encoder, card, split):
    source = open_source(run_data(str(run)), split=split)
    return extract_features(encoder, source, evaluation_view(16), mean=card.mean, std=card.std)


def test_knn_of_a_run_prints_its_line_and_writes_it(run, method, card, capsys):
    train, test = (expected_features(run, method["encoder"], card, split) for split in ("train", "test"))
    accuracy = knn_accuracy(train, test, k=5, num_classes=3)
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
    assert "6 images" in capsys.readouterr().out


def test_k_beyond_the_training_images_is_refused(run):
    with pytest.raises(ValueError, match="k 16 is more than the 15 labeled images of"):
        evaluate_knn(str(run), k=16, **QUIET)


def test_without_a_k_as_many_vote_as_a_class_has_images_where_there_are_few(run, capsys):
    assert evaluate_knn(str(run), **QUIET)["k"] == 5
    assert "(k=5, T=0.1, " in capsys.readouterr().out


def test_data_without_labels_is_refused(run, tmp_path):
    data = DataConfig(str(tmp_path / "images/train/dark"), str(tmp_path / "images/val/dark"), workers=0)
    with pytest.raises(ValueError, match="5 of 5 training images have no label"):
        evaluate_knn(str(run), data=data, **QUIET)


def test_linear_prints_its_protocol_and_its_line(run, capsys):
    result = evaluate_linear(str(run), protocol="moco", epochs=2, lr=0.5, batch_size=5, **QUIET)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  2 epochs, batch 5, sgd, lr 0.5, divided by 10 after epochs 1 and 2"
    line = f"linear top1 last {100 * result['last']:.2f} best {100 * result['best']:.2f}"
    assert lines[-1] == f"{line} (protocol moco, 2 epochs, 9 images)"
    assert json.loads((run / "linear.json").read_text()) == json.loads(json.dumps(result))
    assert result["changed"] == ["batch_size", "epochs", "lr"]


def test_linear_takes_a_smaller_batch_of_few_images_and_says_so(run, caplog):
    caplog.set_level("INFO")
    result = evaluate_linear(str(run), protocol="cached", epochs=1, **QUIET)
    assert (result["protocol"]["batch_size"], result["changed"]) == (8, ["batch_size", "epochs"])
    assert "batch_size: 8 instead of 256, for there are 15 images" in caplog.text
    with pytest.raises(ValueError, match="15 training images are less than one batch of 16"):
        evaluate_linear(str(run), protocol="cached", epochs=1, batch_size=16, **QUIET)


def test_a_cached_probe_says_so(run, capsys):
    evaluate_linear(str(run), protocol="cached", epochs=2, batch_size=5, **QUIET)
    out = capsys.readouterr().out
    assert "train: as test, features extracted once" in out
    assert "(protocol cached, 2 epochs, 9 images)" in out


def test_the_classifier_is_saved_and_gives_the_accuracy_after_the_last_epoch(run, method, card):
    result = evaluate_linear(str(run), protocol="cached", epochs=3, lr=1.0, batch_size=5, **QUIET)
    classifier = load_classifier(run / "linear.safetensors")
    features, labels = expected_features(run, method["encoder"], card, "test")
    assert (classifier(features).argmax(dim=1) == labels).double().mean() == result["last"]
    assert result["classes"] == ["bright", "dark", "gray"]
    assert sorted(path.name for path in run.glob("linear*")) == ["linear.json", "linear.safetensors"]
    with pytest.raises(ValueError, match=r"backbone\.json holds no weight \(classes, features\) and bias of a classif"):
        load_classifier(run / "backbone.json")


def test_trials_are_probes_of_following_seeds_and_their_spread_is_said(run, capsys):
    options = {"protocol": "moco", "epochs": 2, "lr": 0.5, "batch_size": 5, **QUIET}
    alone = [evaluate_linear(str(run), seed=seed, **options)["last"] for seed in (4, 5, 6)]
    capsys.readouterr()
    result = evaluate_linear(str(run), seed=4, trials=3, keep=True, **options)
    assert result["trials"]["last"] == alone
    assert (result["mean"], result["std"]) == (statistics.fmean(alone), statistics.stdev(alone))
    line = f"linear top1 last {100 * result['mean']:.2f} std {100 * result['std']:.2f} best "
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)
    assert sorted(path.name for path in run.glob("linear-*")) == [f"linear-moco-seed{seed}" for seed in (4, 5, 6)]


def test_a_dry_run_of_linear_says_what_would_be_done_and_does_nothing(run, capsys):
    before = sorted(run.rglob("*"))
    evaluate_linear(str(run), protocol="moco", batch_size=5, trials=2, precision="bfloat16", dry_run=True, **QUIET)
    assert capsys.readouterr().out.splitlines()[4:] == [
        "  precision: bfloat16",
        "  changed: batch_size",
        f"{run.parent / 'images' / 'train'}: train 15, test 9 images",
        "selection: last",
        "cost: 3,009 images through the frozen encoder",
    ]
    assert sorted(run.rglob("*")) == before


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
    ids=["center", "two"],
)
def test_seeds_of_random_crops_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_linear("nowhere", **options)


def test_an_unknown_protocol_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="no protocol 'best'"):
        evaluate_linear("nowhere", protocol="best")


def test_similarity_of_a_run_prints_its_line_and_writes_it(run, method, card, capsys):
    test = expected_features(run, method["encoder"], card, "test")
    intra, inter = intra_class_similarity(*test, 3), inter_class_similarity(*test, 3)
    result = evaluate_similarity(str(run), **QUIET)
    assert (result["intra_class"], result["inter_class"]) == (intra, inter)
    line = f"similarity intra-class {intra:.3f} inter-class {inter:.3f} (9 test images, 3 classes, backbone)\n"
    assert capsys.readouterr().out == line
    assert json.loads((run / "similarity.json").read_text()) == result
    assert (result["num_test"], result["num_classes"]) == (9, 3)


def test_similarity_says_which_features_and_takes_projections_and_baselines(run, tmp_path, capsys):
    out = {"out": str(tmp_path)}
    results = [
        evaluate_similarity(str(run), features="projection", **QUIET),
        evaluate_similarity("random", like=str(run), **out, **QUIET),
        evaluate_similarity("pixels", like=str(run), **out, **QUIET),
    ]
    assert capsys.readouterr().out.splitlines()[0].endswith("(9 test images, 3 classes, projection)")
    assert [result["features"] for result in results] == ["projection", "backbone", "backbone"]
    assert len({result["intra_class"] for result in results}) == 3
    assert json.loads((run / "similarity.json").read_text()) == results[0]


def test_similarity_counts_the_classes_of_two_images_or_more(run, tmp_path, capsys):
    for number in (1, 2):
        (tmp_path / f"images/val/dark/{number}.png").unlink()
    assert evaluate_similarity(str(run), **QUIET)["num_classes"] == 2
    assert "(7 test images, 2 classes, backbone)" in capsys.readouterr().out


def test_similarity_refuses_images_without_labels_or_pairs(run, tmp_path):
    data = DataConfig(str(tmp_path / "images/train/dark"), str(tmp_path / "images/val/dark"), workers=0)
    with pytest.raises(ValueError, match="3 of 3 test images have no label"):
        evaluate_similarity(str(run), data=data, **QUIET)
    for number in (1, 2):
        for name in ("dark", "gray", "bright"):
            (tmp_path / f"images/val/{name}/{number}.png").unlink()
    with pytest.raises(ValueError, match="no class has two of the 3 test images"):
        evaluate_similarity(str(run), **QUIET)


SMALL = {"images_per_class": 3, "perplexity": 2.5, **QUIET}


@pytest.mark.slow
def test_tsne_draws_several_encoders_and_says_of_which_features_and_images(run, tmp_path, capsys):
    out = tmp_path / "tsne.png"
    encoders = ["pixels", "random", str(run), str(run / "backbone.safetensors")]
    assert draw_tsne(encoders, out=str(out), like=str(run), **SMALL) == out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 4 * 600
    *similarities, wrote = capsys.readouterr().out.splitlines()
    for encoder, line in zip(encoders, similarities, strict=True):
        assert line.startswith(f"{encoder}: similarity intra-class 0.")
    assert wrote == (
        f"wrote {out}: t-SNE of l2-normalized backbone features, perplexity 2.5, seed 0; "
        f"9 test images, 3 classes of {tmp_path / 'images' / 'val'}"
    )


@pytest.mark.slow
def test_tsne_gives_the_similarity_of_the_images_shown(run, method, card, tmp_path, capsys):
    draw_tsne([str(run)], out=str(tmp_path / "tsne.png"), features="projection", **SMALL)
    test = expected_features(run, torch.nn.Sequential(method["encoder"], method["projector"]), card, "test")
    intra, inter = intra_class_similarity(*test, 3), inter_class_similarity(*test, 3)
    assert f"{run}: similarity intra-class {intra:.3f} inter-class {inter:.3f}\n" in capsys.readouterr().out


def test_tsne_draws_the_same_picture_again(run, tmp_path):
    first, second, other = (
        draw_tsne([str(run)], out=str(tmp_path / f"{number}.png"), classes=2, seed=seed, **SMALL).read_bytes()
        for number, seed in enumerate((1, 1, 3))
    )
    assert first == second
    assert first != other


@pytest.fixture
def second_run(run, tmp_path):
    """Makes a copy of the run whose data, or card, says something else."""

    def make(*, channels=3, **data):
        folder = tmp_path / "second"
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["data"] |= data
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        card = load_card(folder / "backbone.json")
        if channels != card.channels:
            card = dataclasses.replace(card, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
            save_card(folder / "backbone.json", card)
            weights = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
            weights["method"]["encoder.conv1.weight"] = weights["method"]["encoder.conv1.weight"][:, :channels].clone()
            torch.save(weights, folder / "checkpoints" / "last.pt")
        return str(folder)

    return make


def test_tsne_of_runs_on_different_data_is_refused_with_both_names(run, second_run, tmp_path):
    second = second_run(holdout=0.25)
    message = f"{run} and {second} were trained on different data (data.holdout None and 0.25); give the data"
    with pytest.raises(ValueError, match="different data") as refused:
        draw_tsne([str(run), second], out=str(tmp_path / "x.png"), **SMALL)
    assert message in str(refused.value)
    draw_tsne([str(run), second], out=str(tmp_path / "x.png"), data=run_data(str(run)), **SMALL)


def test_tsne_of_runs_that_only_read_the_same_images_in_other_ways_is_drawn(run, second_run, tmp_path):
    assert draw_tsne([str(run), second_run(workers=3)], out=str(tmp_path / "x.png"), **SMALL).exists()


def test_tsne_of_encoders_of_different_channels_is_refused(run, second_run, tmp_path):
    second = second_run(channels=1)
    with pytest.raises(ValueError, match=f"{run} takes 3 and {second} takes 1"):
        draw_tsne([str(run), second], out=str(tmp_path / "x.png"), **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "x.pdf"}, r"written as \.png, not 'x\.pdf'"),
        ({"out": "missing/x.png"}, r"no folder missing to write x\.png to"),
        ({"classes": 1}, "classes must be 2 to 10, .* got 1"),
        ({"classes": 11}, "classes must be 2 to 10, .* got 11"),
        ({"images_per_class": 1}, "images_per_class must be at least 2, got 1"),
        ({"like": "run"}, "like 'run' is for random and pixels; nowhere say themselves"),
        ({}, "'nowhere' does not exist"),
    ],
    ids=["suffix", "folder", "one class", "many classes", "images", "like", "run"],
)
def test_tsne_refuses_what_it_cannot_draw_before_the_work(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        draw_tsne(["nowhere"], **options)


@pytest.mark.parametrize("perplexity", [0.0, 9.0, 30.0])
def test_tsne_refuses_a_perplexity_that_the_images_do_not_allow_before_the_work(run, tmp_path, monkeypatch, perplexity):
    monkeypatch.setattr("ssl_core.evaluate.subject.extract_features", None)
    with pytest.raises(ValueError, match=f"positive and below the 9 images shown, got {perplexity:g}"):
        draw_tsne([str(run)], out=str(tmp_path / "x.png"), perplexity=perplexity, **QUIET)


def test_tsne_refuses_images_without_labels(run, tmp_path):
    data = DataConfig(str(tmp_path / "images/train/dark"), str(tmp_path / "images/val/dark"), workers=0)
    with pytest.raises(ValueError, match="3 of 3 test images have no label"):
        draw_tsne([str(run)], out=str(tmp_path / "x.png"), data=data, **SMALL)


def test_tsne_needs_to_be_told_the_data_of_encoders_that_know_none(run, tmp_path):
    exported = str(run / "backbone.safetensors")
    with pytest.raises(ValueError, match=f"none of {exported} is a run that names its data; give the data"):
        draw_tsne([exported], out=str(tmp_path / "x.png"), **SMALL)
    assert draw_tsne([exported], out=str(tmp_path / "x.png"), data=run_data(str(run)), **SMALL).exists()


def test_tsne_without_matplotlib_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "ssl-core\[plot\]"'):
        draw_tsne(["nowhere"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_are_the_features_with_identifiers_and_labels(run, method, card, tmp_path, suffix):
    path = embed(str(run), str(tmp_path / f"features{suffix}"), split="test", **QUIET)
    if suffix == ".npz":
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        found["class"] = found["classes"][found["labels"]]
    else:
        table = pq.read_table(path)
        assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[8]"
        found = {
            "features": np.array(table["features"].to_pylist(), dtype=np.float32),
            "labels": np.array(table["label"]),
            "class": np.array(table["class"].to_pylist()),
            "identifiers": np.array(table["identifier"].to_pylist()),
        }
    expected = expected_features(run, method["encoder"], card, "test")
    np.testing.assert_array_equal(found["features"], expected.features.numpy())
    assert found["labels"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["class"].tolist() == [name for name in ("bright", "dark", "gray") for _ in range(3)]
    assert found["identifiers"][3] == str(tmp_path / "images/val/dark/0.png")


def embedded(run, data, folder):
    with np.load(embed(str(run), str(folder / "x.npz"), data=data, split="test", **QUIET)) as file:
        return {name: file[name].tolist() for name in file.files}


def evaluated_linear(run, data, folder):
    return evaluate_linear(str(run), data=data, protocol="cached", epochs=2, batch_size=5, out=str(folder), **QUIET)


BY_COMMAND = {
    "embed": embedded,
    "knn": lambda run, data, folder: evaluate_knn(str(run), data=data, k=5, out=str(folder), **QUIET),
    "linear": evaluated_linear,
    "similarity": lambda run, data, folder: evaluate_similarity(str(run), data=data, out=str(folder), **QUIET),
    "tsne": lambda run, data, folder: draw_tsne(
        [str(run)], out=str(folder / "x.png"), data=data, **(SMALL | {"perplexity": 1.5})
    ).read_bytes(),
}


@pytest.mark.parametrize("command", BY_COMMAND.values(), ids=BY_COMMAND)
def test_a_broken_image_is_left_out_whether_images_are_held_in_memory_or_not(run, tmp_path, capsys, command):
    # Among the first, so that others move up, and before one of another class.
    for name in ("train/bright/1.png", "val/bright/0.png", "val/dark/2.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    data = dataclasses.replace(run_data(str(run)), broken_limit=0.3)
    results, printed = [], []
    for memory_gib in (4.0, 0.0):
        results.append(command(run, dataclasses.replace(data, memory_gib=memory_gib), tmp_path))
        printed.append(capsys.readouterr().out)
    assert results[0] == results[1]
    assert printed[0] == printed[1]


def test_the_mean_of_the_classes_is_reported_beside_an_accuracy_that_differs_from_it(run, tmp_path, capsys):
    for number in (1, 2):
        (tmp_path / f"images/val/dark/{number}.png").unlink()
    shutil.copy(tmp_path / "images/val/bright/0.png", tmp_path / "images/val/dark")  # all that dark has: one in seven
    result = evaluate_knn("pixels", like=str(run), k=5, **QUIET)
    assert (result["top1"], result["balanced"]) == (pytest.approx(6 / 7), pytest.approx(2 / 3))
    assert capsys.readouterr().out == "knn top1 85.71 (k=5, T=0.1, 7 images, balanced over classes 66.67)\n"
    result = evaluated_linear(run, run_data(str(run)), tmp_path)
    assert capsys.readouterr().out.endswith(f"7 images{balanced_text(result['last'], result['balanced'])})\n")


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


@pytest.mark.parametrize(
    "command", [evaluate_knn, evaluate_linear, evaluate_similarity, evaluate_transfer, evaluate_voc07]
)
def test_a_folder_that_is_missing_is_refused_before_anything_is_loaded(command, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.subject.load_encoder", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / name} to write the result to"):
            command("pixels", like="run", out=str(tmp_path / name), data=DataConfig(source="."))


@pytest.mark.parametrize(
    "command", [evaluate_knn, evaluate_linear, evaluate_similarity, evaluate_transfer, evaluate_voc07]
)
def test_a_folder_that_cannot_be_written_is_refused_before_images_are_encoded(command, run, root, monkeypatch):
    def refuse(folder):
        raise PermissionError(f"cannot write to {folder}")

    monkeypatch.setattr("ssl_core.evaluate.subject.check_writable", refuse)
    monkeypatch.setattr(Subject, "extract", lambda *_, **__: pytest.fail("images were encoded"))
    voc = {"data": DataConfig(root=str(root), workers=0), "protocol": "clsa"}
    options = voc if command is evaluate_voc07 else {}
    with pytest.raises(PermissionError, match=f"cannot write to {run}"):
        command(str(run), **options, **QUIET)


def test_an_export_is_the_last_checkpoint(run, method, tmp_path):
    path = export(str(run), str(tmp_path / "exported.safetensors"))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_backbone(path)(images), method["encoder"](images))
    assert load_card(tmp_path / "exported.json") == load_card(run / "backbone.json")


def test_images_of_other_channels_than_the_encoders_are_refused(run, tmp_path):
    data = dataclasses.replace(run_data(str(run)), channels=1)
    with pytest.raises(ValueError, match=r"has 1 channels but the encoder takes 3; set data\.channels to 3"):
        evaluate_knn(str(run), data=data, k=5, **QUIET)


@pytest.mark.slow
def test_a_trained_encoder_is_above_a_random_one(tmp_path, monkeypatch):
    # Three epochs of labels in place of many without, which take longer.
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}
    card = BackboneCard("resnet18", 1, 16, (0.09,), (0.22,), 32, "small_pool", options)
    data = DataConfig("digits", workers=0)
    train, test = (open_source(data, split=split) for split in ("train", "test"))
    protocol = dataclasses.replace(FINETUNE_PROTOCOLS["supervised_cifar"], epochs=(3,), batch_size=64)
    torch.manual_seed(0)
    subject = Subject("digits", make_card_encoder(card), card, data, "cpu")
    tuned = fine_tune(subject, train, test, protocol, protocol.grid[0], every=None)
    trained = str(tmp_path / "x.safetensors")
    save_backbone(trained, tuned.encoder, card)

    monkeypatch.setattr(transfer, "PENALTIES", (0.01, 0.1, 1.0, 10.0))
    options = {"data": data, "out": str(tmp_path), **QUIET}
    few = {"protocol": "clim_semi", "fraction": 0.1, "epochs": 4, "lr_head": 1.0, "trials": 3}
    for score in (
        lambda *encoder, **like: evaluate_knn(*encoder, **like, **options)["top1"],
        lambda *encoder, **like: evaluate_linear(*encoder, protocol="cached", epochs=20, **like, **options)["last"],
        lambda *encoder, **like: evaluate_transfer(*encoder, **like, **options)["sets"]["digits"]["score"],
        lambda *encoder, **like: evaluate_finetune(*encoder, **few, **like, **options)["mean"],
    ):
        assert score(trained) > score("random", like=trained) + 0.05
