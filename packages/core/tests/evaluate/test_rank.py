import dataclasses
import json
import math
import shutil

import pytest
import torch
import yaml

from ssl_core.backbone import load_card, save_card
from ssl_core.data import open_source
from ssl_core.evaluate import alpha_req, extract_features, lidar, neighbor_agreement, rank, run_data, run_views
from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.health import effective_rank
from ssl_core.evaluate.rank import placed, rank_text
from ssl_core.views import make_view_specs

QUIET = {"progress": False, "images": 50, "view_images": 50, "views": 3}


def with_eigenvalues(values, *, n=300):
    """Rows whose covariance has these eigenvalues, up to a common factor, in a random basis."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(rows - rows.mean(dim=0)).Q
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return 5 + (rows * torch.as_tensor(values, dtype=torch.float64).sqrt()) @ basis


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("length", [7, 60, 256])
def test_alpha_of_an_exact_power_law_is_its_exponent(alpha, length):
    values = torch.arange(1, length + 1, dtype=torch.float64) ** -alpha
    assert alpha_req(with_eigenvalues(values)) == pytest.approx(alpha, abs=1e-6)


def test_alpha_is_fitted_from_the_fourth_to_the_hundredth_eigenvalue_with_weights_that_fall_as_the_rank():
    values = torch.arange(1, 121, dtype=torch.float64) ** -1.5
    values[:3], values[100:] = 50.0, 1e-9
    assert alpha_req(with_eigenvalues(values)) == pytest.approx(1.5, abs=1e-6)
    # By hand: log values 0, 0, -1 at log 1, log 2, log 3, with weights 6/11, 3/11, 2/11.
    mean = (3 * math.log(2) + 2 * math.log(3)) / 11
    squares = (6 * mean**2 + 3 * (math.log(2) - mean) ** 2 + 2 * (math.log(3) - mean) ** 2) / 11
    expected = 2 / 11 * (math.log(3) - mean) / squares
    assert alpha_req(with_eigenvalues([1.0, 1.0, math.exp(-1)]), first=1) == pytest.approx(expected)


@pytest.mark.parametrize("features", [torch.ones(60, 8), torch.arange(60.0)[:, None].expand(60, 8)])
def test_alpha_of_features_on_a_point_or_a_line_is_infinite(features):
    assert alpha_req(features) == math.inf


def test_lidar_is_the_rank_of_the_lda_matrix():
    # Views scatter by 1 along the first axis and by 1/2 along the second: S_w = diag(1, 1/4). Centers (2, 0), (-2, 0),
    # (0, 1), (0, -1): S_b = diag(2, 1/2). The LDA matrix is diag(2, 2), of rank 2.
    centers = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]], dtype=torch.float64)
    scatter = torch.tensor([[1.0, 0.5], [1, -0.5], [-1, 0.5], [-1, -0.5]], dtype=torch.float64)
    views = centers[:, None] + scatter
    assert lidar(views, delta=1e-12) == pytest.approx(2)
    # With (4, 0) and (-4, 0): S_b = diag(8, 1/2), the LDA matrix diag(8, 2), p = 4/5 and 1/5.
    expected = math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    wider = centers * torch.tensor([2.0, 1.0])
    assert lidar(wider[:, None] + scatter, delta=1e-12) == pytest.approx(expected)
    # The scale of the features does not matter, nor a rotation.
    turned = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    assert lidar(1000 * (wider[:, None] + scatter) @ turned) == pytest.approx(lidar(wider[:, None] + scatter))


def test_lidar_is_low_where_images_differ_by_no_more_than_their_views_do_and_rankme_is_not():
    torch.manual_seed(1)
    noise = torch.randn(400, 5, 16)
    told_apart_in_two = noise.clone()
    told_apart_in_two[:, :, :2] += 30 * torch.randn(400, 1, 2)
    assert lidar(told_apart_in_two) < 2.5
    assert lidar(noise) > 14  # nothing is told apart, in all dimensions alike
    assert effective_rank(told_apart_in_two[:, 0]) > 4


@pytest.mark.parametrize("views", [torch.ones(9, 3, 4), torch.zeros(9, 3, 4)])
def test_lidar_of_a_collapsed_encoder_is_one(views):
    assert lidar(views) == pytest.approx(1)


def test_neighbors_agree_where_views_do():
    # Four images on a circle at 0, 10, 90 and 100 degrees; by the second view at 0, 90, 10 and 100.
    angles = torch.deg2rad(torch.tensor([[0.0, 10, 90, 100], [0, 90, 10, 100]]))
    first, second = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert neighbor_agreement(first, first, k=1) == 1
    assert neighbor_agreement(first, second, k=1) == 0  # 0 with 1 and 2 with 3; 0 with 2 and 1 with 3
    # Two each: 1 2, 0 2, 1 3, 1 2 by the first; 1 2, 2 3, 0 1, 1 2 by the second. In common 2, 1, 1, 2.
    assert neighbor_agreement(first, second, k=2).item() == pytest.approx(6 / 8)
    assert neighbor_agreement(first, second, k=3) == 1


def test_runs_are_placed_by_the_direction_of_the_measure():
    values = {"a": 0.2, "b": 1.1, "c": 3.0, "d": math.inf}
    assert placed("rankme", values) == ["d", "c", "b", "a"]
    assert placed("alpha_req", values) == ["b", "a", "c", "d"]


@pytest.fixture
def two_runs(run, tmp_path):
    """Two runs of one method on 60 training and 60 test images, the second's projector scaled and its card other."""
    for split in ("train", "val"):
        for name in ("dark", "gray", "bright"):
            for number in range(20):
                (tmp_path / "images" / split / name / f"{number}.png").write_bytes(
                    (tmp_path / "images" / split / name / f"{number % 3}.png").read_bytes()
                )
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["views"] = [{"augmentation": "weak", "size": 16}, {"augmentation": "strong", "size": 16}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    state = torch.load(other / "checkpoints" / "last.pt", weights_only=True)
    for key, value in state["method"].items():
        if key.startswith("projector.") and key.endswith("weight") and value.ndim == 2:
            value[1:] = value[:1]  # of rank one
    torch.save(state, other / "checkpoints" / "last.pt")
    return run, other


def test_runs_are_put_in_order_on_images_that_they_have_not_seen(two_runs, method, card, tmp_path, capsys):
    run, other = two_runs
    result = rank([str(run), str(other)], out=str(tmp_path), **QUIET)
    written = json.loads((tmp_path / "rank.json").read_text())
    assert written["order"] == result["order"]
    assert result["order"]["rankme"] == [str(run), str(other)]
    assert result["order"]["lidar"][0] == str(run)
    measures = result["runs"][str(run)]
    assert measures["num_features"] == {"backbone": 8, "projection": 4}
    said, head, best, *_, chosen = capsys.readouterr().out.splitlines()
    assert said == f"50 images of {tmp_path}/images/val, not trained on; 3 views of 50 of them, 10 neighbors"
    assert head.split("  ")[1].strip() == "RankMe (higher)"
    assert best.startswith(f"1  run {measures['projection']['rankme']:.4g}")
    assert "no paper ranks runs by it" in chosen


def test_the_measures_are_those_of_the_functions_on_the_runs_features(two_runs, method, card):
    run, _ = two_runs
    result = rank([str(run)], **QUIET | {"images": 60, "view_images": 60})
    source = open_source(run_data(str(run)), split="test")
    look = {"mean": card.mean, "std": card.std}
    features = extract_features(method["encoder"], source, evaluation_view(16), **look).features
    with torch.no_grad():
        projections = method["projector"](features)
    found = result["runs"][str(run)]
    assert found["projection"]["rankme"] == pytest.approx(effective_rank(projections).item(), rel=1e-4)
    assert found["backbone"]["alpha_req"] == pytest.approx(alpha_req(features), rel=1e-4)
    # The run's two views take turns, each with draws of its own.
    weak, strong = make_view_specs(run_views(str(run)))
    views = [
        extract_features(method["encoder"], source, view, seed=seed, **look).features
        for seed, view in enumerate((weak, strong, weak))
    ]
    with torch.no_grad():
        projected = torch.stack([method["projector"](each) for each in views], dim=1)
    assert found["projection"]["lidar"] == pytest.approx(lidar(projected), rel=1e-3)
    assert found["backbone"]["neighbors"] == pytest.approx(neighbor_agreement(*views[:2], k=10).item(), abs=0.01)
    assert rank([str(run)], **QUIET) == rank([str(run)], **QUIET)


def test_without_a_test_split_training_images_are_taken_and_that_is_said(two_runs, tmp_path, capsys):
    run, _ = two_runs
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = str(tmp_path / "images" / "train")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rank([str(run)], **QUIET)
    assert "which the runs trained on; 3 views of 50 of them" in capsys.readouterr().out


def test_several_methods_are_compared_only_where_that_is_asked_for(two_runs, capsys):
    run, other = two_runs
    save_card(other / "backbone.json", dataclasses.replace(load_card(other / "backbone.json"), recipe="ssl-other"))
    with pytest.raises(ValueError, match=r"of 2 methods, toy, ssl-other, .* only to compare .* --across_methods"):
        rank([str(run), str(other)], **QUIET)
    rank([str(run), str(other)], across_methods=True, **QUIET)
    assert "compared across methods: toy, ssl-other" in capsys.readouterr().out


def test_two_methods_of_one_package_are_two(two_runs):
    for run, method in zip(two_runs, ("MoCo v2", "ReSSL"), strict=True):
        save_card(run / "backbone.json", dataclasses.replace(load_card(run / "backbone.json"), method=method))
    with pytest.raises(ValueError, match=r"of 2 methods, MoCo v2, ReSSL, which these measures"):
        rank([str(run) for run in two_runs], **QUIET)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", {"views": 1}, "views must be 2 or more, got 1"),
        ("", {"images": 49}, "images must be 50 or more, got 49"),
        ("", {"view_images": 9}, "view_images must be 50 or more, got 9"),
        ("no checkpoint", {}, r"there is no checkpoint .*last\.pt"),
        ("no projector", {}, "describes no projector"),
        ("no views", {}, "has no readable node views"),
        ("other size", {}, "has no view of 16 px that continues none"),
        ("few images", {}, r"has 9 images; the measures take 50 or more"),
        ("twice", {}, "is given twice"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_images_are_encoded(
    two_runs, tmp_path, monkeypatch, change, options, message
):
    run, other = two_runs
    monkeypatch.setattr("ssl_core.evaluate.subject.extract_features", lambda *_, **__: pytest.fail("encoded"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    if change == "no checkpoint":
        (run / "checkpoints" / "last.pt").unlink()
    elif change == "no projector":
        save_card(run / "backbone.json", dataclasses.replace(load_card(run / "backbone.json"), projector=()))
    elif change == "no views":
        del config["views"]
    elif change == "other size":
        config["views"] = [{"augmentation": "weak", "size": 32}]
    elif change == "few images":
        for name in ("dark", "gray", "bright"):
            for number in range(3, 20):
                (tmp_path / "images" / "val" / name / f"{number}.png").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        rank([str(run), str(run if change == "twice" else other)], **QUIET | options)


def test_a_table_has_its_runs_in_the_order_of_each_measure():
    layer = {"rankme": 3.0, "alpha_req": 0.5, "lidar": 2.0, "neighbors": 0.25}
    found = {
        "runs/a": {"backbone": layer, "projection": layer},
        "runs/b": {"backbone": layer | {"alpha_req": 1.0}, "projection": layer | {"rankme": 4.0}},
    }
    order = {"rankme": ["runs/b", "runs/a"], "alpha_req": ["runs/b", "runs/a"]}
    order |= {"lidar": ["runs/a", "runs/b"], "neighbors": ["runs/a", "runs/b"]}
    assert rank_text(found, order).splitlines()[1:3] == [
        "1  b 4              b 1                 a 2             a 0.25",
        "2  a 3              a 0.5               b 2             b 0.25",
    ]
