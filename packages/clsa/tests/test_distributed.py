import pytest
from torch import nn

from ssl_clsa import CLSA, CLSAConfig
from ssl_core.nn import QueueConfig
from ssl_core.testing import check_ranks
from ssl_core.views import ViewConfig, make_view_specs

KEY, WEAK, STRONG = ViewConfig("moco_v2", 8), ViewConfig("moco_v2", 8), ViewConfig("clsa_strong", 8)
MULTI = (KEY, WEAK, ViewConfig("moco_v2", 6), STRONG, ViewConfig("clsa_strong", 6))
CASES = {
    "single": {},
    "two temperatures": {"divergence_temperature": 0.1},
    "multi": {"views": MULTI, "num_weak": 2},
    "multi, two temperatures": {"views": MULTI, "num_weak": 2, "divergence_temperature": 0.1},
    "own key and queue": {"in_batch_negatives": False},
    "target with gradient": {"detach_target": False},
    "symmetric": {"symmetric": True},
    "strong views in InfoNCE": {"strong_loss": "contrastive"},
    "empty queue": {"queue": QueueConfig(24, "empty")},
    "sharded queue": {"queue": QueueConfig(24, sharded=True)},
    "target with gradient, sharded queue": {"detach_target": False, "queue": QueueConfig(24, sharded=True)},
    "symmetric, empty sharded queue": {"symmetric": True, "queue": QueueConfig(24, "empty", sharded=True)},
}


def make_method(views=(KEY, WEAK, STRONG), **settings):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    config = CLSAConfig(**{"queue": QueueConfig(24)} | settings)
    return CLSA(encoder, nn.Linear(16, 5), config, views=make_view_specs(views), dim=5)


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_give_the_gradient_of_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
