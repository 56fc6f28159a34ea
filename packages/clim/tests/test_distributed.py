import pytest
from torch import nn

from ssl_clim import CLIM, CLIMConfig
from ssl_core.nn import QueueConfig
from ssl_core.testing import check_ranks
from ssl_core.views import ViewConfig, make_view_specs

CASES = {
    "clim": {},
    "mixup": {"mixing": "mixup"},
    "one box for the batch": {"per_batch": True},
    "no mixing": {"mixing": "none"},
    "multi-resolution": {"sizes": [8, 6]},
    "moco v2": {"partners": False},
    "empty queue": {"queue": QueueConfig(24, "empty")},
    "sharded queue": {"queue": QueueConfig(24, sharded=True)},
}


def make_method(sizes=8, partners=True, **settings):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    own, partner = (ViewConfig("moco_v2", sizes, partner=partner) for partner in (False, True))
    queries = [own] if settings.get("mixing") == "none" or not partners else [own, partner]
    specs = make_view_specs([*queries, own, *([partner] if partners else [])])
    config = CLIMConfig(**{"queue": QueueConfig(24)} | settings)
    return CLIM(encoder, nn.Linear(16, 5), config, views=specs, dim=5)


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_train_as_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
