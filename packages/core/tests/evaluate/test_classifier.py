import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_core.backbone import make_card_encoder
from ssl_core.evaluate.classifier import Classifier, make_linear, matmuls_in
from ssl_core.testing import check_ranks
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs

STEP = Step(0, 2, 1)
IMAGES, LABELS = torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 1, 1])


@pytest.fixture
def encoder(card):
    torch.manual_seed(0)
    return make_card_encoder(card)


def test_the_loss_is_the_cross_entropy_of_a_linear_layer_on_the_features(encoder):
    linear = nn.Linear(8, 3)
    output = Classifier(encoder.eval(), linear).eval()((IMAGES, LABELS), STEP)
    expected = F.cross_entropy(linear(encoder(IMAGES)), LABELS)
    assert torch.equal(output.loss, expected)
    assert output.keys is None


def test_several_labels_of_an_image_are_judged_one_by_one():
    # Scores of zero: each of the six labels costs log 2.
    classifier = Classifier(nn.Flatten(), make_linear(4, 3, "zeros", 0))
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert classifier((torch.randn(2, 1, 2, 2), labels), STEP).loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_a_frozen_encoder_stays_as_it_is_whatever_happens_to_the_classifier(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    classifier = Classifier(encoder.train(), nn.Linear(8, 3), frozen=True).train()
    classifier((IMAGES, LABELS), STEP).loss.backward()
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert set(classifier.state_dict()) == {"linear.weight", "linear.bias"}
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_a_trained_encoder_learns_and_moves_its_statistics(encoder):
    before = encoder.bn1.running_mean.clone()
    Classifier(encoder, nn.Linear(8, 3)).train()((IMAGES, LABELS), STEP).loss.backward()
    assert encoder.conv1.weight.grad.abs().sum() > 0
    assert not torch.equal(encoder.bn1.running_mean, before)


@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_reaches_the_encoder_and_not_the_layer_after_it(encoder, frozen):
    seen = {}
    linear = nn.Linear(8, 3)
    for name, module in (("features", encoder), ("scores", linear)):
        module.register_forward_hook(lambda *call, name=name: seen.update({name: call[2].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        loss = Classifier(encoder, linear, frozen=frozen)((IMAGES, LABELS), STEP).loss
    assert (seen["features"], seen["scores"], loss.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_the_seed_decides_how_a_layer_begins_and_no_generator_moves():
    generator = torch.get_rng_state()
    for head, spread in (("zeros", 0.0), ("normal", 0.01), ("torch", 3**-0.5 * 256**-0.5)):
        first, again, other = (make_linear(256, 200, head, seed) for seed in (0, 0, 1))
        assert torch.equal(first.weight, again.weight)
        assert torch.equal(first.weight, other.weight) == (head == "zeros")
        assert first.weight.std().item() == pytest.approx(spread, rel=0.02)
        assert first.bias.any() == (head == "torch")
    assert torch.equal(torch.get_rng_state(), generator)


class OfItsImages(Classifier):
    """Labels made from the images, which is all that check_ranks gives."""

    def forward(self, views, step):
        means = views[0].mean(dim=(2, 3))
        labels = (means > 0).long() if self.linear.out_features == 3 else means.argmax(dim=1)
        return super().forward((*views, labels), step)


CASES = {"one label": {"num_classes": 4}, "several labels": {"num_classes": 3}}


def make_method(num_classes):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return OfItsImages(encoder, nn.Linear(16, num_classes), make_view_specs([ViewConfig("weak", 8)]))


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_give_the_gradient_of_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)


@pytest.fixture
def tf32_by_its_new_name():
    """As a user may set it; the old name, allow_tf32, raises then."""
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    products.fp32_precision = "tf32"
    yield products
    products.fp32_precision = before


def test_products_are_of_float32_inside_and_as_the_user_has_set_them_after(tf32_by_its_new_name):
    with matmuls_in("float32", "cpu"):
        assert tf32_by_its_new_name.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert tf32_by_its_new_name.fp32_precision == "tf32"
