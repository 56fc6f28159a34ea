import dataclasses

import pytest
import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard, make_card_encoder
from ssl_core.data import DataConfig, MemoryImages, open_source
from ssl_core.evaluate import PROTOCOLS, Subject, extract_features, linear_probe
from ssl_core.evaluate import linear as linear_module
from ssl_core.evaluate.classifier import Classifier, Folders, train_labelled
from ssl_core.evaluate.linear import _optimizer
from ssl_core.views import RandomResizedCrop, Resize, ViewSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
CARD = BackboneCard("toy", channels=3, image_size=16, mean=MEAN, std=STD, num_features=3)


def probe(encoder, train, test, protocol, *, seed=0, precision="float32", **options):
    subject = Subject("toy", encoder, CARD, DataConfig(workers=0), "cpu", precision)
    folders = options.pop("folders", Folders(seeds=(seed,)))
    results, _ = linear_probe(subject, train, test, protocol, folders=folders, **options)
    return results[0]


def short(name, **changes):
    return dataclasses.replace(PROTOCOLS[name], **{"epochs": 5, "batch_size": 8, **changes})


class MeanColor(nn.Module):
    """Three features: the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, images):
        self.forwards += 1
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.slow
def test_the_probe_learns_what_is_separable(toy_source, name):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1, 2] * 4, seed=1)
    protocol = short(name, epochs=20, lr=1000.0 if name == "simsiam" else 1.0, scale_lr=False)
    result = probe(MeanColor(), train, test, protocol)
    assert result.last == 1
    assert result.best == 1


def test_augmented_images_are_encoded_in_every_epoch_and_cached_ones_once(toy_source):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1, 2])
    for name, forwards in (("moco", 1 + 5 * 3), ("cached", 1 + 1)):
        encoder = MeanColor()
        probe(encoder, train, test, short(name))
        assert encoder.forwards == forwards


def test_last_and_best_are_both_reported(toy_source, monkeypatch):
    top1, top5 = (0.5, 0.8, 0.8, 0.6), (0.9, 0.7, 1.0, 0.8)
    epochs = [{"top1": one, "balanced": 0.5, "top5": five} for one, five in zip(top1, top5, strict=True)]
    monkeypatch.setattr(linear_module, "train_labelled", lambda *arguments, **options: epochs)
    result = probe(MeanColor(), toy_source([0] * 8), toy_source([0, 0, 0, 1]), short("moco"))
    assert result == (0.6, 0.8, 2, 0.5, (), 0.8, 0.7)  # top-5 of the epochs that top-1 chose


def test_the_trunk_stays_frozen_in_eval_mode(toy_source, card):
    encoder = make_card_encoder(card).train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    probe(encoder, toy_source([0, 1, 2] * 4), toy_source([0, 1, 2]), short("moco", epochs=2))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert encoder.training


def test_the_seed_decides_everything(toy_source):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1, 2] * 9, seed=1)
    torch_generator = torch.get_rng_state()
    scores = {
        seed: [probe(nn.Flatten(), train, test, short("moco", lr=1e-4), seed=seed) for _ in range(2)]
        for seed in (0, 1, 2)
    }
    assert all(first == second for first, second in scores.values())
    assert len({first for first, _ in scores.values()}) > 1
    assert torch.equal(torch.get_rng_state(), torch_generator)


def test_the_seed_decides_the_initial_weights(toy_source):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1, 2] * 9, seed=1)
    one_batch = short("cached", epochs=1, batch_size=24, lr=1e-12)
    results = {probe(nn.Flatten(), train, test, one_batch, seed=seed) for seed in range(5)}
    assert len(results) > 1


def test_two_steps_are_the_hand_worked_ones(toy_source, monkeypatch):
    # Without features only the bias learns. It starts at 0, where each class has probability 1/3; of the batch
    # 3/4, 1/4 and 0 belong to the classes, so the gradient is 1/3 minus these. The cosine gives lr 0.6, then 0.3.
    class Nothing(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 1)

    share = torch.tensor([3 / 4, 1 / 4, 0])
    first = 1 / 3 - share
    bias = -0.6 * first
    second = bias.softmax(0) - share
    expected = [bias, bias - 0.3 * (0.9 * first + second)]

    seen = []
    ranks = linear_module.label_ranks
    monkeypatch.setattr(
        linear_module, "label_ranks", lambda scores, labels: seen.append(scores) or ranks(scores, labels)
    )
    protocol = short("cached", epochs=2, batch_size=4, lr=0.6, milestones=())
    probe(Nothing(), toy_source([0, 0, 1, 0]), toy_source([0]), protocol)
    torch.testing.assert_close(torch.cat(seen[:2]), torch.stack(expected))


def test_the_rate_is_asked_for_at_every_step_of_an_epoch(toy_source, monkeypatch):
    asked = []
    monkeypatch.setattr(linear_module, "learning_rate", lambda protocol, epoch: asked.append(epoch) or 0.1)
    probe(MeanColor(), toy_source([0, 1] * 4), toy_source([0]), short("cached", epochs=2, batch_size=4))
    assert asked[:4] == [0, 0.5, 1, 1.5]


def half_bright(label):
    """Dark above, and from the middle down of the label's brightness, so that a crop decides what is seen."""
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 8:] = 120 + 120 * label
    return images


@pytest.fixture
def halves():
    labels = torch.arange(2).repeat_interleave(40)
    return MemoryImages("halves", torch.cat([half_bright(0), half_bright(1)]), labels, ("dim", "bright"))


RANDOM_CROPS = ViewSpec((Resize(18), RandomResizedCrop((0.2, 0.4))), (16,))


def test_random_crops_are_classified_by_the_one_classifier_that_was_trained(halves, monkeypatch):
    trained = []
    monkeypatch.setattr(
        linear_module,
        "train_labelled",
        lambda classifier, *arguments, **options: (
            trained.append(classifier.linear) or train_labelled(classifier, *arguments, **options)
        ),
    )
    protocol = short("cached", lr=3.0)
    seeds = (4, 5, 6)
    result = probe(MeanColor(), halves, halves, protocol, random_view=RANDOM_CROPS, crop_seeds=seeds)
    assert len(trained) == 1
    (classifier,) = trained
    for seed, accuracy in zip(seeds, result.random_crops, strict=True):
        cut = extract_features(MeanColor(), halves, RANDOM_CROPS, mean=MEAN, std=STD, seed=seed)
        assert accuracy == (classifier(cut.features).argmax(dim=1) == cut.labels).double().mean()


def test_random_crops_change_with_their_seed_and_nothing_else_does(halves):
    protocol = short("cached", lr=3.0)
    results = [
        probe(MeanColor(), halves, halves, protocol, random_view=RANDOM_CROPS, crop_seeds=seeds)
        for seeds in ((0, 1, 2), (2, 1, 0), ())
    ]
    assert results[0].random_crops == results[1].random_crops[::-1]
    assert len(set(results[0].random_crops)) > 1
    assert results[0].last == results[1].last == results[2].last == 1


def test_lars_moves_a_tensor_by_a_fixed_fraction_of_its_norm():
    # Trust coefficient 0.001 and no weight decay: the first step is lr 0.001 |w| long whatever the gradient,
    # and a bias of zero, whose norm gives no scale, moves by lr times its gradient.
    weight, bias = torch.randn(4, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    before = weight.detach().clone()
    optimizer = _optimizer([weight, bias], dataclasses.replace(PROTOCOLS["simsiam"], lr=2.0))
    weight.grad, bias.grad = 100 * torch.randn(4, 3), torch.ones(4)
    optimizer.step()
    torch.testing.assert_close((weight.detach() - before).norm(), 2.0 * 0.001 * before.norm())
    torch.testing.assert_close(bias.detach(), torch.full((4,), -2.0))


def test_a_classifier_that_diverges_is_reported(toy_source):
    protocol = short("cached", lr=1e38)
    with pytest.raises(ValueError, match=r"diverged at step \d of 15 at learning rate 1e\+38; give a smaller lr"):
        probe(MeanColor(), toy_source([0, 1, 2] * 8), toy_source([0, 1]), protocol)


def test_less_than_one_batch_is_refused(toy_source):
    with pytest.raises(ValueError, match="3 training images are less than one batch of 8; give a smaller batch_size"):
        probe(MeanColor(), toy_source([0, 1, 2]), toy_source([0, 1]), short("moco"))


@pytest.mark.parametrize("name", ["moco", "cached"])
def test_missing_labels_are_refused(toy_source, name):
    with pytest.raises(ValueError, match="1 of 9 training images have no label"):
        probe(MeanColor(), toy_source([0] * 8 + [-1]), toy_source([0]), short(name))
    with pytest.raises(ValueError, match="1 of 1 test images have no label"):
        probe(MeanColor(), toy_source([0] * 8), toy_source([-1]), short(name))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["moco", "cached"])
@pytest.mark.parametrize("killed_in", ["step", "test"])
def test_a_probe_that_is_killed_goes_on_as_if_it_had_never_stopped(toy_source, tmp_path, monkeypatch, name, killed_in):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1, 2] * 9, seed=1)
    protocol = short(name, lr=1e-4)

    def found(folder, **options):
        subject = Subject("toy", nn.Flatten(), CARD, DataConfig(workers=0), "cpu")
        return linear_probe(subject, train, test, protocol, folders=Folders(folder, name), **options)

    (expected,), layer = found(tmp_path / "whole")
    calls = 0

    def killed(function):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == {"step": 11, "test": 3}[killed_in]:  # of 15 steps, and of 5 tests
                raise Killed
            return function(*arguments)

        return call

    owner, function = {"step": (Classifier, "update"), "test": (linear_module, "balanced_accuracy")}[killed_in]
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, killed(getattr(owner, function)))
        with pytest.raises(Killed):
            found(tmp_path / "parts")
    (result,), other = found(tmp_path / "parts")
    assert result == expected
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_what_other_settings_have_begun_is_not_continued(toy_source, tmp_path):
    train, test = toy_source([0, 1, 2] * 8), toy_source([0, 1])
    options = {"folders": Folders(tmp_path, "linear-moco"), "settings": {"protocol": {"lr": 1.0}, "digest": "a"}}
    first = probe(MeanColor(), train, test, short("moco"), **options)
    assert probe(MeanColor(), train, test, short("moco"), **options) == first
    options["settings"] = {"protocol": {"lr": 2.0}, "digest": "b"}
    with pytest.raises(
        ValueError, match=r"linear-moco-seed0 holds .* begun:\n  digest: a -> b\n  protocol\.lr: 1\.0 -"
    ):
        probe(MeanColor(), train, test, short("moco"), **options)


def test_processes_that_cannot_share_a_batch_are_told_the_next_that_they_can(toy_source, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(
        ValueError, match="batch_size 8 cannot be shared equally by 3 processes: take 6 or 9, or start 2 or 4 processes"
    ):
        probe(MeanColor(), toy_source([0, 1, 2] * 8), toy_source([0, 1]), short("moco"))


def test_bfloat16_in_the_encoder_changes_little():
    digits = [open_source(DataConfig("digits"), split=split) for split in ("train", "test")]
    card = dataclasses.replace(CARD, channels=1, image_size=32, mean=(0.1,), std=(0.3,))
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 32, 7, stride=4), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten())
    found, seen = {}, set()
    encoder.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    for precision in ("float32", "bfloat16"):
        subject = Subject("toy", encoder, card, DataConfig(workers=0), "cpu", precision)
        (found[precision],), _ = linear_probe(subject, *digits, short("cached", lr=0.05, batch_size=64))
    assert seen == {torch.float32, torch.bfloat16}
    assert found["float32"].top5_last > found["float32"].last > 0.4
    assert abs(found["float32"].last - found["bfloat16"].last) < 0.01
