"""Losses within a batch, of which each of two processes has one half: they train as one process with all of it."""

import pytest
from torch import nn

from ssl_core.distributed import gather_with_grad, rank
from ssl_core.losses import barlow_twins, nt_xent
from ssl_core.testing import check_ranks
from ssl_core.train import StepOutput
from ssl_core.views import ViewConfig, make_view_specs


def gathered_barlow_twins(first, second):
    return barlow_twins(gather_with_grad(first), gather_with_grad(second))


def gathered_nt_xent(first, second):
    first, second = nn.functional.normalize(first, dim=1), nn.functional.normalize(second, dim=1)
    batch = gather_with_grad(first), gather_with_grad(second)
    return nt_xent(first, second, 0.2, batch=batch, row_offset=rank() * len(first))


class TwoViews(nn.Module):
    """An encoder and a loss."""

    views = make_view_specs([ViewConfig("moco_v2", 8)] * 2)

    def __init__(self, loss, dim):
        super().__init__()
        self.loss = loss
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, dim))
        self.projector = nn.Identity()

    def forward(self, views, step):
        return StepOutput(self.loss(*map(self.encoder, views)), None, {})

    def update(self, keys, step):
        pass


make_method = TwoViews
CASES = {
    "barlow twins": {"loss": gathered_barlow_twins, "dim": 5},
    "barlow twins, wide": {"loss": gathered_barlow_twins, "dim": 20},
    "nt_xent": {"loss": gathered_nt_xent, "dim": 5},
}


@pytest.mark.distributed
def test_two_processes_with_half_the_batch_each_train_as_one_with_all_of_it(tmp_path):
    check_ranks(__file__, tmp_path)
