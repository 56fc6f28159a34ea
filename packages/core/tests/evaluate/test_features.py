import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import nn

from ssl_core.backbone import make_card_encoder
from ssl_core.data import MemoryImages
from ssl_core.evaluate import evaluating, evaluation_view, extract_features
from ssl_core.testing import ROUNDING

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


def test_raw_pixels_are_the_normalized_image(toy_source):
    source = toy_source([2, 0, 1])
    found = extract_features(nn.Flatten(), source, evaluation_view(16), mean=MEAN, std=STD)
    expected = (source.images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(found.features, expected.flatten(1))
    assert found.labels.tolist() == [2, 0, 1]


def test_from_64_pixels_on_the_view_is_resized_and_cut_as_in_imagenet():
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    source = MemoryImages("one", image[None], torch.tensor([0]))
    found = extract_features(nn.Flatten(), source, evaluation_view(224), mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = TF.center_crop(TF.resize(image / 255, [256], antialias=True), [224, 224])
    # Places between pixels, of up to 400, are rounded twice for each side.
    torch.testing.assert_close(found.features.reshape(3, 224, 224), expected, atol=4 * 400 * ROUNDING, rtol=0)


def test_a_small_image_is_seen_as_it_is():
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    source = MemoryImages("one", image, torch.tensor([0]))
    found = extract_features(nn.Flatten(), source, evaluation_view(32), mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.testing.assert_close(found.features.reshape(1, 3, 32, 32), image / 255)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (7, 0), (3, 2)])
def test_batches_and_workers_change_nothing(toy_source, card, batch_size, workers):
    source, encoder = toy_source([0, 1, 2, 0, 1, 2, 0]), make_card_encoder(card)
    expected = extract_features(encoder, source, evaluation_view(16), mean=MEAN, std=STD)
    options = {"batch_size": batch_size, "workers": workers}
    found = extract_features(encoder, source, evaluation_view(16), mean=MEAN, std=STD, **options)
    torch.testing.assert_close(found.features, expected.features)
    assert torch.equal(found.labels, expected.labels)


def test_the_encoder_its_mode_and_the_generator_are_left_alone(toy_source, card):
    encoder = make_card_encoder(card).train()
    encoder.bn1.eval()
    modes = [module.training for module in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    found = extract_features(encoder, toy_source([0, 1]), evaluation_view(16), mean=MEAN, std=STD)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not found.features.requires_grad


def test_batch_norm_uses_its_running_statistics(toy_source, card):
    source, encoder = toy_source([0, 1, 2]), make_card_encoder(card).train()
    together = extract_features(encoder, source, evaluation_view(16), mean=MEAN, std=STD)
    alone = extract_features(encoder, source, evaluation_view(16), mean=MEAN, std=STD, batch_size=1)
    torch.testing.assert_close(together.features, alone.features)


def test_the_mode_comes_back_after_an_error():
    def fail(images):
        assert not module.training
        raise OSError

    module = nn.Dropout().train()
    with pytest.raises(OSError), evaluating(module):  # noqa: PT011  # it is ours
        fail(module)
    assert module.training
    assert torch.is_grad_enabled()


def test_another_number_of_channels_is_refused(toy_source):
    with pytest.raises(ValueError, match=r"toy:0 has 1 channels but the encoder takes 3; set data.channels to 3"):
        extract_features(nn.Flatten(), toy_source([0], channels=1), evaluation_view(16), mean=MEAN, std=STD)


def test_features_that_are_not_finite_name_the_image(toy_source):
    class Diverged(nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3)).sub(0.3).log()  # NaN where dark

    with pytest.raises(ValueError, match="features of toy:4 are not finite"):
        extract_features(
            Diverged(), toy_source([2, 2, 2, 2, 0]), evaluation_view(16), mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=3
        )


def test_unknown_labels_are_minus_one(toy_source):
    found = extract_features(nn.Flatten(), toy_source([-1, 2]), evaluation_view(16), mean=MEAN, std=STD)
    assert found.labels.tolist() == [-1, 2]
