import pytest
from torch import nn

from ssl_core.nn import QueueConfig
from ssl_core.testing import check_ranks
from ssl_core.views import ViewConfig, make_view_specs
from ssl_leoclr import LeOCLR, LeOCLRConfig

BASELINE = {"views": ["moco_v2"] * 2, "anchor": "random_crop"}
CASES = {
    "leoclr": {},
    "attract all": {"attract": "all"},
    "enqueue both": {"enqueue": "both"},
    "moco v2": BASELINE,
    "empty queue": {"queue": QueueConfig(24, "empty")},
    "attract all, sharded queue": {"attract": "all", "queue": QueueConfig(24, sharded=True)},
    "moco v2, sharded queue": BASELINE | {"queue": QueueConfig(24, sharded=True)},
    "simclr framework": {"framework": "simclr"},
    "simclr framework, attract all": {"framework": "simclr", "attract": "all"},
    "simclr": BASELINE | {"framework": "simclr"},
}


def make_method(views=("moco_v2_uncropped", "moco_v2", "moco_v2"), **settings):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    specs = make_view_specs([ViewConfig(name, 8) for name in views])
    queue = {} if settings.get("framework") == "simclr" else {"queue": QueueConfig(24)}
    config = LeOCLRConfig(**queue | settings)
    return LeOCLR(encoder, nn.Linear(16, 5), config, views=specs, dim=5)


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_train_as_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
