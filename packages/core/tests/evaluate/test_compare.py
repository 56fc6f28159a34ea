import dataclasses
import itertools
import json
import shutil
import sys

import pytest
import torch
from scipy.stats import binomtest

from ssl_core.data import DataConfig
from ssl_core.evaluate import (
    Features,
    Subject,
    compare,
    correctness,
    evaluate_knn,
    paired_comparison,
    run_data,
    standardized,
)
from ssl_core.evaluate.compare import Row, bootstrap_means, comparison_text, paired_p_value
from ssl_core.evaluate.logistic import fit_classifier
from ssl_core.testing import DOUBLE

QUIET = {"progress": False}
MODULE = sys.modules["ssl_core.evaluate.compare"]  # which in its package the function hides
EXTRACT = Subject.extract


def test_the_p_value_is_the_share_of_signs_that_make_as_large_a_sum():
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        differences = torch.randint(-3, 4, (number % 9 + 1,), generator=generator)
        sums = [
            abs(sum(sign * each for sign, each in zip(signs, differences.tolist(), strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))
        ]
        share = sum(each >= abs(differences.sum().item()) for each in sums) / len(sums)
        assert paired_p_value(differences) == pytest.approx(share, abs=DOUBLE)


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (0, 4), (30, 12), (300, 301), (900, 700)])
def test_of_images_that_are_right_once_the_p_value_is_mcnemars(better, worse):
    differences = torch.tensor([1] * better + [-1] * worse + [0] * 50)
    assert paired_p_value(differences) == pytest.approx(binomtest(better, better + worse).pvalue, rel=1e-9)


def test_equal_encoders_do_not_differ():
    assert paired_p_value(torch.zeros(9, dtype=torch.int64)) == 1


def test_a_comparison_is_the_hand_worked_one():
    right = {"a": [[1, 0, 0, 0], [1, 1, 0, 0]], "b": [[1, 1, 1, 0], [1, 1, 1, 1]]}
    rows = paired_comparison("5 labels", {name: torch.tensor(each).bool() for name, each in right.items()})
    assert [(row.test, row.encoder) for row in rows] == [("5 labels", "a"), ("5 labels", "b")]
    assert [row.top1 for row in rows] == [3 / 8, 7 / 8]
    assert [row.draws for row in rows] == [(0.25, 0.5), (0.75, 1.0)]
    # Of differences 0, 1, 2, 1 (in halves): sums of at least 4 for 2 of 8 signs.
    assert [(row.difference, row.p) for row in rows] == [(-0.5, 0.25), (0.0, 1.0)]
    assert rows[1].difference_interval == (0.0, 0.0)
    assert rows[0].interval[0] <= 3 / 8 <= rows[0].interval[1]


def test_intervals_are_those_of_the_binomial_distribution_and_paired():
    first = torch.rand(2000) < 0.7
    second = first.clone()
    second[:40] = False
    low, high = next(iter(paired_comparison("knn", {"a": first[None], "b": second[None]}))).interval
    accuracy = first.double().mean().item()
    assert (high - low) / 2 == pytest.approx(1.96 * (accuracy * (1 - accuracy) / 2000) ** 0.5, rel=0.1)
    row = paired_comparison("knn", {"a": first[None], "b": second[None]})[1]
    assert row.difference_interval[1] - row.difference_interval[0] < (high - low) / 2  # of the same resamples
    assert row.difference_interval[1] < 0


def test_resamples_depend_on_the_seed_alone_and_not_on_blocks(monkeypatch):
    scores = torch.rand(3, 11, dtype=torch.float64)
    means = bootstrap_means(scores, resamples=50, seed=1)
    assert means.shape == (50, 3)
    assert not torch.equal(means, bootstrap_means(scores, resamples=50, seed=2))
    monkeypatch.setattr(MODULE, "_BLOCK", 30)
    torch.testing.assert_close(bootstrap_means(scores, resamples=50, seed=1), means, rtol=0, atol=DOUBLE)
    torch.testing.assert_close(bootstrap_means(scores[1:2], resamples=50, seed=1)[:, 0], means[:, 1])


def test_a_linear_classifier_takes_the_penalty_that_is_best_on_held_out_training_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    train, test = (
        Features(3 * torch.eye(200)[labels] + torch.randn(300, 200, generator=generator), labels) for _ in range(2)
    )
    right, chosen = correctness(train, test, num_classes=3, k=5, shots=(1, 20))
    assert list(right) == ["knn", "linear", "1 label", "20 labels"]
    assert [tuple(each.shape) for each in right.values()] == [(1, 300), (1, 300), (5, 300), (5, 300)]
    assert chosen["penalty"] >= 10  # of features that are noise but for a little
    assert chosen["converged"]
    ready, tested = standardized(train, test)
    fit = fit_classifier(*ready, 3, chosen["penalty"], limits=MODULE.LIMITS)  # all training images
    assert torch.equal(right["linear"][0], fit.scores(tested.features).argmax(dim=1) == labels)
    again = [each.features * 1000 for each in (train, test)]
    scaled, _ = correctness(
        *(each._replace(features=big) for each, big in zip((train, test), again, strict=True)),
        num_classes=3,
        k=5,
        shots=(1, 20),
    )
    for name, each in right.items():
        assert (each == scaled[name]).double().mean() > 0.99


def test_the_table_is_aligned_and_narrow():
    name = "timm:vit_small_patch14_dinov2.lvd1"
    rows = [
        Row("knn", name, 0.571, (0.561, 0.58), -0.1, (-0.11, -0.09), 1e-9, (0.571,)),
        Row("knn", "runs/x", 0.671, (0.661, 0.68), 0.0, (0.0, 0.0), 1.0, (0.671,)),
        Row("linear", name, 1.0, (1.0, 1.0), 0.0, (0.0, 0.0), 1.0, (1.0,)),
        Row("linear", "runs/x", 0.0, (0.0, 0.0), -1.0, (-1.0, -1.0), 0.0312, (0.0,)),
    ]
    table = comparison_text(rows, {"knn": "kNN, k 200"}).splitlines()
    assert table == [
        "  top-1 in %                                 95 % interval    to best  95 % interval           p",
        "kNN, k 200",
        f"  {name}   57.1  56.1 to 58.0       -10.0  -11.0 to -9.0     <0.0001",
        "  runs/x                               67.1  66.1 to 68.0        best",
        "linear",
        f"  {name}  100.0  100.0 to 100.0      best",
        "  runs/x                                0.0  0.0 to 0.0        -100.0  -100.0 to -100.0   0.0312",
    ]
    assert max(map(len, table)) <= 100


def test_of_long_names_the_table_shows_ends_that_differ():
    def first_column(*names):
        rows = [Row("knn", name, 0.5, (0.5, 0.5), 0.0, (0.0, 0.0), 1.0, (0.5,)) for name in names]
        return [line.split()[0] for line in comparison_text(rows, {}).splitlines()[2:]]

    long = "somebodys/old/experiments/of/november/runs/"
    assert first_column(f"{long}a", "pixels") == [".../experiments/of/november/runs/a", "pixels"]
    assert first_column(f"/one{long}a", f"/two{long}a") == [f"/one{long}a", f"/two{long}a"]


def test_encoders_are_compared_on_features_that_are_extracted_once(run, tmp_path, capsys, monkeypatch):
    extracted = []
    monkeypatch.setattr(
        Subject,
        "extract",
        lambda subject, *args, **options: extracted.append(subject.name) or EXTRACT(subject, *args, **options),
    )
    result = compare(["pixels", str(run), "random"], out=str(tmp_path), **QUIET)
    assert extracted == ["pixels"] * 2 + [str(run)] * 2 + ["random"] * 2
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(result))
    tests = ["knn", "linear", "1 label", "5 labels"]
    assert [(row["test"], row["encoder"]) for row in result["rows"]] == [
        (test, encoder) for test in tests for encoder in ("pixels", str(run), "random")
    ]
    like = {"pixels": str(run), "random": str(run)}
    for row in result["rows"][:3]:
        knn = evaluate_knn(row["encoder"], like=like.get(row["encoder"]), data=run_data(str(run)), **QUIET)
        assert row["top1"] == knn["top1"]
    printed = capsys.readouterr().out
    assert printed.startswith("15 training and 9 test images of ")
    assert "kNN, k 5, T 0.1\n  pixels" in printed
    assert result["linear"].keys() == result["encoders"].keys() == {"pixels", "random", str(run)}


def test_a_comparison_is_the_same_again_and_with_its_encoders_in_another_order(run):
    one, other = (compare(encoders, **QUIET)["rows"] for encoders in ([str(run), "random"], ["random", str(run)]))

    def by_name(rows):  # the interval of a difference is the other's where two are equally good
        return {(row["test"], row["encoder"]): [row[name] for name in ("interval", "difference", "p")] for row in rows}

    assert by_name(one) == by_name(other)


def test_an_encoder_of_gray_images_is_compared_with_one_of_color(run, tmp_path):
    gray = tmp_path / "gray"
    shutil.copytree(run, gray)
    card = json.loads((gray / "backbone.json").read_text())
    (gray / "backbone.json").write_text(json.dumps(card | {"channels": 1, "mean": [0.5], "std": [0.2]}))
    saved = torch.load(gray / "checkpoints" / "last.pt", weights_only=True)
    saved["method"]["encoder.conv1.weight"] = saved["method"]["encoder.conv1.weight"][:, :1].clone()
    torch.save(saved, gray / "checkpoints" / "last.pt")
    result = compare([str(run), str(gray)], **QUIET)
    alone = evaluate_knn(str(gray), data=dataclasses.replace(run_data(str(run)), channels=1), **QUIET)
    assert result["rows"][1]["top1"] == alone["top1"]


@pytest.mark.parametrize(
    ("encoders", "options", "message"),
    [
        (["RUN", "RUN/"], {}, "RUN/ is given twice"),
        (["pixels", "RUN", "pixels"], {}, "pixels is given twice"),
        (["RUN"], {"out": "missing"}, "no folder missing to write the result to"),
        (["RUN"], {"out": "/proc"}, "/proc"),
        (["RUN"], {"like": "RUN"}, "like .* is for random and pixels"),
        (["pixels", "timm:resnet18"], {}, "pixels has the size of its input from another encoder"),
        (["RUN", "nowhere"], {}, "'nowhere' does not exist"),
        (["pixels", "RUN"], {"like": "nowhere"}, "'nowhere' does not exist"),
        (["RUN"], {"shots": 6}, "shots 6: class bright has 5 training images; give 1 to 5"),
        (["RUN"], {"shots": [1, 0]}, "shots 0: class bright"),
        (["RUN"], {"data": "dark"}, "5 of 5 training images have no label"),
    ],
    ids=[
        "path twice",
        "name twice",
        "no folder",
        "unwritable",
        "like",
        "no like",
        "no run",
        "like no run",
        "shots",
        "no shots",
        "no labels",
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_work(encoders, options, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.subject.extract_features", None)
    encoders = [each.replace("RUN", str(run)) for each in encoders]
    if "data" in options:
        options = {"data": DataConfig(*(str(tmp_path / f"images/{split}/dark") for split in ("train", "val")))}
    with pytest.raises((ValueError, OSError), match=message.replace("RUN", str(run))):
        compare(encoders, **options, **QUIET)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1, 1, 1], [1, 1], "the 3 training images of toy are all of one class"),
        ([0, 2], [0, 2], "toy has one training image of each class"),
        ([0, 0, 2], [0], "1 test image of toy says nothing of a difference"),
    ],
    ids=["one class", "one of each", "one test image"],
)
def test_too_few_images_are_refused_before_the_work(train, test, message, run, toy_source, monkeypatch):
    monkeypatch.setattr(MODULE, "open_encoded", lambda data, split: toy_source(test if split == "test" else train))
    with pytest.raises(ValueError, match=message):
        compare([str(run)], **QUIET)


def test_a_run_without_a_checkpoint_is_refused(run):
    (run / "checkpoints" / "last.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*last\.pt"):
        compare([str(run)], **QUIET)
