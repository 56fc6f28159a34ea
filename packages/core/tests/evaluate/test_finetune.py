import dataclasses
import json

import pytest
import torch
import yaml
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard, load_backbone, load_card, make_card_encoder, save_backbone
from ssl_core.data import DataConfig, MemoryImages, open_encoded, open_source
from ssl_core.evaluate import (
    FINETUNE_PROTOCOLS,
    Subject,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluation_view,
    extract_features,
    fine_tune,
    run_data,
)
from ssl_core.evaluate.classifier import Classifier, DivergedError, load_classifier
from ssl_core.evaluate.finetune_protocol import Setting
from ssl_core.evaluate.grid import Point, choose_setting
from ssl_core.train import read_metrics

QUIET = {"progress": False}
SHORT = {"protocol": "clim_semi", "epochs": 2, "batch_size": 8, **QUIET}


def subject(card, encoder=None, seed=0):
    torch.manual_seed(seed)
    return Subject("toy", encoder or make_card_encoder(card), card, DataConfig(workers=0), "cpu")


def short(name="clim_semi", **changes):
    return dataclasses.replace(FINETUNE_PROTOCOLS[name], **{"batch_size": 8, **changes})


class Scaled(nn.Module):
    """One feature: the brightness of the image times a weight, which begins at 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.weight * images.mean(dim=(1, 2, 3))[:, None]


def test_one_step_is_the_hand_worked_one_at_two_rates_with_nesterov_and_decay():
    # Two gray images, so that crops do not matter: 0.2 of class 0 and 0.6 of class 1, features 0.4 and 1.2. Scores of
    # zero give each class 1/2, so the gradient of row 0 is (-0.4 + 1.2) / 4 = 0.2, of row 1 -0.2, and of the encoder,
    # through a layer of zeros, its decay alone: 0.5 / lr = 5 times its weight 2. Nesterov's first step has 1.9 of it.
    gray = torch.tensor([51, 153], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8).contiguous()
    source = MemoryImages("gray", gray, torch.tensor([0, 1]), ("dark", "bright"))
    card = BackboneCard("toy", 1, 8, mean=(0.0,), std=(1.0,), num_features=1)
    protocol = short(
        *("ssl_transfer_finetune",),
        **{"batch_size": 2, "lr": (0.1,), "lr_head": 3.0, "steps": 1, "weight_decay": (0.5,), "head": "zeros"},
    )
    encoder = Scaled()
    tuned = fine_tune(subject(card, encoder), source, source, protocol, protocol.grid[0])
    assert encoder.weight.item() == pytest.approx(2 - 0.1 * 1.9 * 5 * 2, rel=1e-5)
    expected = torch.tensor([[-0.2], [0.2]]) * 3.0 * 1.9
    torch.testing.assert_close(tuned.linear.weight, expected)
    torch.testing.assert_close(tuned.linear.bias, torch.zeros(2))


def test_as_many_steps_are_taken_as_are_asked_for_within_an_epoch_or_not(toy_source, card, tmp_path):
    train, test = toy_source([0, 1, 2] * 7), toy_source([0, 1, 2])  # 2 full batches, and one of 5
    for steps in (1, 3, 5):
        protocol = short("ssl_transfer_finetune", steps=steps, lr=(0.1,), weight_decay=(0.0,))
        work = tmp_path / str(steps)
        tuned = fine_tune(subject(card), train, test, protocol, protocol.grid[0], work=work, every=None)
        assert len(tuned.scores) == 1
        assert max(record["step"] for record in read_metrics(work)) == steps


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [4, 6])  # within the second epoch of three steps, and at its end
def test_what_is_killed_goes_on_as_if_it_had_never_stopped(toy_source, card, tmp_path, monkeypatch, killed_at):
    train, test = toy_source([0, 1, 2] * 7), toy_source([0, 1, 2] * 3, seed=1)
    protocol, state = short(epochs=(3,), lr=(0.01,), lr_head=0.1), make_card_encoder(card).state_dict()

    def tuned(folder):
        toy = subject(card, nn.Sequential(make_card_encoder(card), nn.Dropout()))
        toy.encoder[0].load_state_dict(state)
        torch.seed()  # whatever was drawn before
        return fine_tune(toy, train, test, protocol, protocol.grid[0], work=folder, seed=5)

    def update(self, keys, step):
        if step.index + 1 == killed_at:
            raise Killed

    whole = tuned(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "update", update)
        with pytest.raises(Killed):
            tuned(tmp_path / "parts")
    parts = tuned(tmp_path / "parts")
    assert parts.scores == whole.scores
    assert len(whole.scores) == 3
    for one, other in ((whole.encoder, parts.encoder), (whole.linear, parts.linear)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_running_statistics_of_a_short_set_move_as_simclr_has_it(toy_source, card):
    protocol = short("simclr_transfer", steps=1, lr=(0.1,), weight_decay=(0.0,))
    for images, momentum in ((24, 0.1), (8 * 200, 0.05)):
        encoder = make_card_encoder(card)
        source = toy_source([0, 1] * (images // 2), size=4)
        fine_tune(subject(card, encoder), source, toy_source([0, 1]), protocol, protocol.grid[0])
        assert {layer.momentum for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)} == {momentum}


def test_a_command_saves_result_encoder_and_classifier_that_give_the_accuracy_again(run, card, capsys):
    result = evaluate_finetune(str(run), **SHORT)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("protocol clim_semi: CLIM")
    line = f"finetune top1 last {100 * result['last']:.2f} best {100 * result['best']:.2f}"
    assert printed[-2] == f"{line} (protocol clim_semi, 15 labels, 9 images)"
    work = run / "finetune-clim_semi-seed0"
    assert printed[-1] == f"encoder, classifier and log: {work}"
    assert json.loads((run / "finetune-clim_semi.json").read_text()) == json.loads(json.dumps(result))
    assert result["splits"] == {str(run.parent / "images/train"): {"train": 15, "test": 9}}
    assert sorted(path.name for path in work.iterdir() if not path.name.startswith(".")) == [
        *("backbone.json", "backbone.safetensors", "linear.safetensors", "metrics.jsonl")
    ]
    assert load_card(work / "backbone.json").recipe == "toy, clim_semi"
    test = open_source(run_data(str(run)), split="test")
    encoder, linear = load_backbone(work / "backbone.safetensors"), load_classifier(work / "linear.safetensors")
    found = extract_features(encoder, test, evaluation_view(16), mean=card.mean, std=card.std)
    assert (linear(found.features).argmax(dim=1) == found.labels).double().mean() == result["last"]


def test_a_fraction_of_the_labels_is_trained_on_and_named(run):
    result = evaluate_finetune(str(run), fraction=0.4, subset_seed=3, **SHORT | {"batch_size": 2})
    assert result["subset"]["labels"] == 6
    assert (run / "finetune-clim_semi-40percent.json").exists()
    (run / "two.txt").write_text("".join(f"{name}/0.png\n{name}/4.png\n" for name in ("dark", "gray", "bright")))
    listed = evaluate_finetune(str(run), subset=str(run / "two.txt"), **SHORT | {"batch_size": 2}, keep=True)
    assert (listed["subset"]["labels"], listed["splits"].popitem()[1]["train"]) == (6, 6)
    assert (run / "finetune-clim_semi-two-seed0" / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize(
    ("protocol", "fraction", "tested"),
    # 800 test images; of ImageNet's 1 %, which CLIM reports, there are four times as many as labels
    [
        ("clim_semi", 0.01, "every 7 epochs"),
        ("clim_semi", 0.05, "after each epoch"),
        ("swav_semi_1", 0.01, "after each epoch"),
    ],
)
def test_testing_takes_at_most_four_times_as_long_as_training_unless_the_best_counts(
    run, capsys, protocol, fraction, tested
):
    options = {"protocol": protocol, "fraction": fraction, "dry_run": True, **QUIET}
    evaluate_finetune(str(run), data=DataConfig("digits", workers=0), **options)
    assert capsys.readouterr().out.endswith(f", tested {tested}\n")


@pytest.mark.slow
def test_what_is_not_tested_after_each_epoch_still_is_after_the_last_and_has_a_best(run):
    data = DataConfig("digits", workers=0)
    options = {"protocol": "clim_semi", "fraction": 0.01, "epochs": 15, "lr": 0.1, "data": data, **QUIET}
    result = evaluate_finetune(str(run), **options, keep=True)
    records = read_metrics(run / "finetune-clim_semi-1percent-seed0")
    tested = {each["before_epoch"]: each["top1"] for each in records if "top1" in each} | {15: result["last"]}
    assert [*tested] == [7, 14, 15]
    assert result["best_epoch"] == max(tested, key=tested.get)
    assert result["best"] == max(tested.values())


def test_a_broken_image_is_replaced_in_training_and_left_out_of_the_test(run):
    (run.parent / "images/train/gray/1.png").write_bytes(b"broken")
    (run.parent / "images/val/gray/1.png").write_bytes(b"broken")
    for memory_gib in (0.0, 4.0):
        data = DataConfig(str(run.parent / "images"), workers=0, broken_limit=0.5, memory_gib=memory_gib)
        result = evaluate_finetune(str(run), data=data, **SHORT)
        assert (result["num_train"], result["num_test"]) == (14, 8)


def test_a_folder_that_cannot_be_written_is_named_before_any_image_is_read(run, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.finetune.decoded", None)
    with pytest.raises(OSError, match=r"cannot write to the folder .*config\.yaml"):
        evaluate_finetune(str(run), out=str(run / "config.yaml"), **SHORT)


@pytest.mark.parametrize(("split", "key"), [("labelled", "train"), ("test", "test")])
@pytest.mark.parametrize("by", [evaluate_finetune, evaluate_linear])
def test_other_labels_do_not_continue_what_these_have_begun(run, monkeypatch, by, split, key):
    options = SHORT if by is evaluate_finetune else {"protocol": "cached", "epochs": 2, **QUIET}
    by(str(run), keep=True, **options)

    def relabelled(data, which):
        images = open_encoded(data, which)
        return dataclasses.replace(images, labels=images.labels.flip(0)) if which == split else images

    monkeypatch.setattr(f"{by.__module__}.open_encoded", relabelled)
    monkeypatch.setattr(f"{by.__module__}.decoded", None)  # before any image is read
    with pytest.raises(ValueError, match=rf"begun:\n  {key}\.labels: "):
        by(str(run), keep=True, **options)


def test_trials_have_seeds_of_their_own_and_their_spread_is_said(run, capsys):
    result = evaluate_finetune(str(run), trials=2, seed=7, lr=0.1, lr_head=0.1, **SHORT)
    last = result["trials"]["last"]
    assert (result["mean"], result["std"]) == (sum(last) / 2, pytest.approx(abs(last[0] - last[1]) / 2**0.5))
    assert "(2 trials, protocol clim_semi, 15 labels, 9 images)" in capsys.readouterr().out
    weights = [load_classifier(run / f"finetune-clim_semi-seed{seed}/linear.safetensors").weight for seed in (7, 8)]
    assert not torch.equal(*weights)


def test_the_epochs_of_leoclrs_fractions_depend_on_the_fraction(run):
    for fraction, epochs in ((0.05, 60), (0.2, 30), (1.0, 30)):
        options = {"protocol": "leoclr_fraction", "fraction": fraction, "dry_run": True, **QUIET}
        plan = evaluate_finetune(str(run), data=DataConfig("digits", workers=0), **options)
        assert plan["protocol"]["epochs"] == (epochs,)


def test_a_tenth_may_lack_some_images_as_simclrs_list_does(run, monkeypatch):
    options = {"protocol": "leoclr_fraction", "fraction": 0.1, "dry_run": True, **QUIET}
    for images, epochs in ((139, 30), (125, 60)):  # of 1,397
        monkeypatch.setattr(
            "ssl_core.evaluate.finetune.balanced_subset", lambda *_, images=images: torch.arange(images)
        )
        plan = evaluate_finetune(str(run), data=DataConfig("digits", workers=0), **options)
        assert plan["protocol"]["epochs"] == (epochs,)


def test_a_random_encoder_is_trained_with_labels_and_is_an_encoder_for_other_evaluations(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = evaluate_finetune("random", like=str(run), **SHORT | {"protocol": "supervised_cifar"})
    trained = tmp_path / "runs/random-run/finetune-supervised_cifar-seed0/backbone.safetensors"
    assert load_card(trained.with_suffix(".json")).recipe == "supervised_cifar"
    data = run_data(str(run))
    assert evaluate_knn(str(trained), data=data, k=3, **QUIET)["recipe"] == "supervised_cifar"
    assert result["recipe"] == "random"


GRID = [Setting(None, lr, decay) for lr in (0.1, 0.01) for decay in (0.0, 1e-3)]


def test_the_first_of_the_best_settings_is_chosen_and_one_that_diverged_scores_0(caplog):
    def measure(setting, work):
        if setting.lr == 0.1:
            raise DivergedError("at step 3")
        return 0.75

    assert choose_setting(GRID, measure) == (
        GRID[2],
        [
            Point(GRID[0], 0.0, True),
            Point(GRID[1], 0.0, True),
            Point(GRID[2], 0.75, False),
            Point(GRID[3], 0.75, False),
        ],
    )
    assert "lr 0.1, weight_decay 0: at step 3" in caplog.text
    with pytest.raises(ValueError, match="all 2 settings of the grid diverged; give a smaller lr"):
        choose_setting(GRID[:2], measure)


def test_a_grid_goes_on_where_it_was_stopped_and_other_settings_do_not_continue_it(tmp_path):
    seen = []

    def measure(setting, work):
        work.mkdir()
        seen.append(setting)
        if len(seen) == 3:
            raise Killed
        return 1 - setting.weight_decay - setting.lr

    options = {"folder": tmp_path, "settings": {"protocol": {"lr": (0.1, 0.01)}}}
    with pytest.raises(Killed):
        choose_setting(GRID, measure, **options)
    (tmp_path / "grid-2").rmdir()
    setting, points = choose_setting(GRID, measure, **options)
    assert setting == GRID[2]
    assert len(points) == 4
    assert seen == [*GRID[:3], *GRID[2:]]
    assert [path.name for path in tmp_path.iterdir()] == ["grid.json"]
    with pytest.raises(ValueError, match=r"grid\.json holds what other settings have begun:\n  protocol\.lr: "):
        choose_setting(GRID, measure, folder=tmp_path, settings={"protocol": {"lr": (0.2,)}})


@pytest.mark.slow
def test_a_grid_is_chosen_by_validation_images_alone_and_all_labels_are_trained_on_then(run, monkeypatch, capsys):
    options = {"lr": [0.1, 1e-30], "weight_decay": [0.0, 1e-3], **SHORT | {"batch_size": 4, "epochs": 3}}
    seen = []

    def recorded(subject, train, test, *arguments, **keywords):
        seen.append((len(train), len(test)))
        return fine_tune(subject, train, test, *arguments, **keywords)

    monkeypatch.setattr("ssl_core.evaluate.finetune.fine_tune", recorded)
    first = evaluate_finetune(str(run), **options)
    assert seen == [(12, 3)] * 4 + [(15, 9)]
    assert "; epochs 3, lr " in capsys.readouterr().out
    assert [path.name for path in run.glob("*grid*")] == []
    assert "best" not in first
    # Other test labels change the number that is reported and nothing that is chosen.
    config = yaml.safe_load((run / "config.yaml").read_text())
    images = run.parent / "images"
    (images / "val" / "dark").rename(images / "val" / "x")
    (images / "val" / "gray").rename(images / "val" / "dark")
    (images / "val" / "x").rename(images / "val" / "gray")
    second = evaluate_finetune(str(run), **options)
    assert config["data"]["source"] == str(images)
    assert (second["grid"], second["chosen"]) == (first["grid"], first["chosen"])


def test_a_dry_run_says_what_would_be_done_and_does_nothing(run, capsys):
    before = sorted(run.rglob("*"))
    evaluate_finetune(str(run), protocol="ssl_transfer_finetune", batch_size=4, dry_run=True, **QUIET)
    assert capsys.readouterr().out.splitlines()[7:] == [
        "  precision: float32",
        "  changed: batch_size",
        f"{run.parent / 'images' / 'train'}: train 12, validation 3, test 9 images",
        "selection: validation",
        "cost: 420,000 images forward and backward in 21 runs, tested after the last epoch",
    ]
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "mocco"}, r"there is no protocol 'mocco'; choose one of simclr_semi_1, .*supervised_semi_10"),
        (
            {"protocol": "simclr_semi_1"},
            r"is for 1% of the labels: give subset, .* 1percent\.txt, or fraction 0\.01",
        ),
        ({"subset": "1percent.txt", "fraction": 0.1}, r"subset 1percent\.txt and fraction 0\.1 both say"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\], got 1\.5"),
        ({"encoder": "pixels", "like": "run"}, "pixels have nothing to fine-tune; give a run"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"steps": 3}, r"protocol clim_semi has no steps to set to 3; protocols that do: simclr_transfer, "),
        ({"batch_size": 16}, "15 training images are less than one batch of 16; give a smaller batch_size"),
        ({"precision": "tf32"}, "precision tf32 is one of GPUs, and this is cpu; take float32 or bfloat16"),
        ({"lr": 0.0}, r"lr of a fine-tuning must be positive, not \(0\.0,\)"),
        ({"lr": 1e30, "lr_head": 1e30}, r"diverged at step 1 of 4 at learning rate 1e\+30; give a smaller lr"),
        (
            {"precision": "bfloat16", "image_size": 4},
            "bfloat16: at 4 px a convolution of resnet18 strides over a single",
        ),
    ],
)
def test_what_cannot_be_is_refused(run, options, message):
    options = {"encoder": str(run), **SHORT, **options}
    with pytest.raises(ValueError, match=message):
        evaluate_finetune(options.pop("encoder"), **options)


@pytest.mark.slow
def test_a_sets_own_validation_images_choose_from_a_grid_by_its_own_metric(root, run):
    options = {"lr": [0.1, 0.01], **SHORT | {"batch_size": 4, "epochs": 1}}
    found = {
        name: evaluate_finetune(str(run), data=DataConfig(name, root=str(root), workers=0), out=str(root), **options)
        for name in ("pets", "dtd", "voc2007")
    }
    assert {name: result["metric"] for name, result in found.items()} == {
        **{"pets": "mean_per_class", "dtd": "top1", "voc2007": "map11"},
    }
    splits = {name: tuple(result["splits"][name].values()) for name, result in found.items()}
    assert splits == {"pets": (9, 3, 12), "dtd": (6, 6, 6), "voc2007": (10, 10, 10)}
    voc = found["voc2007"]
    assert len(voc["classes"]) == 20
    assert 0 < voc["last"] <= 1
    assert "top5_last" not in voc
    assert [result.get("difficult") for result in found.values()] == [None, None, "negative"]


@pytest.mark.slow
def test_images_of_several_classes_are_learned_with_all_their_labels(root, run):
    data = DataConfig("voc2007", root=str(root), workers=0)
    options = {"lr": 0.1, "lr_head": 3.0, **SHORT | {"batch_size": 4, "epochs": 30}}
    assert evaluate_finetune(str(run), data=data, **options)["last"] > 0.8
    with pytest.raises(ValueError, match="metric top1 is of one class an image, and those of voc2007 show several"):
        evaluate_finetune(str(run), data=data, metric="top1", **options)
    with pytest.raises(ValueError, match=r"fraction 0\.5 is of each class, and an image of voc2007 has not one"):
        evaluate_finetune(str(run), data=data, fraction=0.5, **options)


def test_what_cannot_be_normalized_over_processes_is_refused_before_anything_is_read(tmp_path, card, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr("ssl_core.evaluate.finetune.open_encoded", None)
    card = dataclasses.replace(card, architecture="efficientnet_b0", stem="imagenet", options={}, num_features=1280)
    save_backbone(tmp_path / "x.safetensors", make_card_encoder(card), card)
    with pytest.raises(ValueError, match=r"cannot synchronize BatchNormAct2d, .* train this network on CUDA"):
        evaluate_finetune(str(tmp_path / "x.safetensors"), data=DataConfig("digits"), **SHORT)
