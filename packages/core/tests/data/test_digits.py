import torch

from ssl_core.data import DataConfig, open_source
from ssl_core.data.digits import TRAIN_PLACEMENTS, draw_digits


def test_the_digits_are_the_same_for_everyone_and_use_the_whole_canvas():
    images, labels = draw_digits(train=False)
    assert images.shape == (800, 1, 32, 32)
    assert torch.equal(images, draw_digits(train=False)[0])
    assert labels.bincount().min() > 50
    assert images.max() > 200
    assert (images.amax(dim=(0, 1, 2)) > 0).all()
    assert (images.amax(dim=(0, 1, 3)) > 0).all()


def test_training_and_test_digits_share_no_scan():
    train, _ = draw_digits(train=True)
    assert len(train) == 1397 * TRAIN_PLACEMENTS
    assert len(torch.cat([train, draw_digits(train=False)[0]]).unique(dim=0)) == 1397 * TRAIN_PLACEMENTS + 800


def test_digits_have_one_channel_or_as_many_as_asked():
    assert open_source(DataConfig(), split="test").image(0).shape == (1, 32, 32)
    color = open_source(DataConfig(channels=3), split="test").image(0)
    assert torch.equal(color, open_source(DataConfig(), split="test").image(0).expand(3, -1, -1))
