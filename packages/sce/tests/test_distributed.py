import pytest
from torch import nn

from ssl_core.nn import QueueConfig
from ssl_core.testing import check_ranks
from ssl_core.views import ViewConfig, make_view_specs
from ssl_sce import SCE, SCEConfig

CASES = {
    "sce": {},
    "infonce": {"coefficient": 1.0},
    "ressl": {"weights": (0.0, 1.0, 0.0)},
    "symmetric": {"symmetric": True},
    "in_batch_negatives": {"in_batch_negatives": True},
    "infonce, in_batch_negatives": {"coefficient": 1.0, "in_batch_negatives": True},
    "symmetric, in_batch_negatives": {"symmetric": True, "in_batch_negatives": True},
    "zero, in_batch_negatives": {"self_similarity": "zero", "in_batch_negatives": True},
    "multi_crop": {"symmetric": True, "num_local": 2},
    "multi_crop, in_batch_negatives": {"symmetric": True, "num_local": 2, "in_batch_negatives": True},
    "empty queue": {"queue": QueueConfig(24, "empty")},
    "sharded queue": {"queue": QueueConfig(24, sharded=True)},
    "ressl, sharded queue": {"weights": (0.0, 1.0, 0.0), "queue": QueueConfig(24, sharded=True)},
    "multi_crop, in_batch_negatives, empty sharded queue": {
        **{"symmetric": True, "num_local": 2, "in_batch_negatives": True},
        "queue": QueueConfig(24, "empty", sharded=True),
    },
}


def make_method(num_local=0, **settings):
    views = make_view_specs([ViewConfig("weak", 8), ViewConfig("strong", 8)] + [ViewConfig("strong", 8)] * num_local)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    config = SCEConfig(**{"queue": QueueConfig(24)} | settings)
    return SCE(encoder, nn.Linear(16, 5), config, predictor=nn.Linear(5, 5), views=views, dim=5)


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_give_the_gradient_of_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
