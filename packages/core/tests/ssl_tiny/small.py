"""Tiny without BatchNorm and without a configuration."""

from torch import nn

from ssl_core.nn import QueueConfig
from ssl_core.views import ViewConfig, make_view_specs
from ssl_tiny.train import Tiny, TinyConfig


def make_small(method_class=Tiny, negatives="queue"):
    queue = QueueConfig(20) if negatives == "queue" else TinyConfig().queue
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh())
    views = make_view_specs([ViewConfig("weak", 8, count=2)])
    return method_class(encoder, nn.Linear(6, 5), TinyConfig(negatives, queue), views=views, dim=5)
