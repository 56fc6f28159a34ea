import pytest
from torch import nn

from ssl_core.testing import check_ranks
from ssl_core.views import ViewConfig, make_ops, make_view_specs
from ssl_dssl import DSSL, DSSLConfig, make_base
from ssl_dssl.views import partially_ordered_views

STANDARD = make_view_specs([ViewConfig("dssl_cifar", 8, count=2)])
ALONE = {"views": STANDARD, "heavy": "none"}
BASES = {name: name for name in ("simclr", "simsiam", "byol", "barlow")} | {
    "mocov2": {"mocov2": {"queue": {"length": 24}}},
    "mocov2, sharded queue": {"mocov2": {"queue": {"length": 24, "sharded": True}}},
}
CASES = (
    {name: {"base": name} for name in BASES}
    | {f"{name} alone": {"base": name} | ALONE for name in BASES}
    | {f"all terms over {name}": {"base": name, "beta": 0.5, "delta": 0.5} for name in ("simclr", "mocov2", "barlow")}
)


def make_method(base, *, views=None, heavy="jigsaw_2", **weights):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    views = views or partially_ordered_views(STANDARD, make_ops(heavy))
    config = DSSLConfig(BASES[base], heavy, **weights)
    predictor = nn.Linear(5, 5) if make_base(config.base).has_predictor else None
    return DSSL(encoder, nn.Linear(16, 5), config, views=views, dim=5, predictor=predictor)


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_train_as_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
