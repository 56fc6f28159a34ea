"""Methods that train in two processes otherwise than in one, for check_ranks to name; and two that do not."""

from unittest.mock import patch

import torch
from ssl_tiny.small import make_small as make_method  # noqa: F401  # check_ranks looks for it in this file
from ssl_tiny.train import Tiny

from ssl_core import distributed


class LocalKeys(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(keys=output.keys.chunk(distributed.world_size())[distributed.rank()])


class LocalNegatives(Tiny):
    def forward(self, views, step):
        alone = {"gather_with_grad": lambda rows: rows, "rank": lambda: 0}
        with patch.multiple(distributed, **alone):
            return super().forward(views, step)


class SumOverImages(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(loss=output.loss * len(views[0]))


class NotANumber(Tiny):
    def update(self, keys, step):
        super().update(keys, step)
        if distributed.world_size() > 1 and step.index == 1:  # the last
            self.queue.keys[0] = torch.nan


CASES = {
    "queue": {},
    "no queue": {"negatives": "batch"},
    "local keys": {"method_class": LocalKeys},
    "local negatives": {"method_class": LocalNegatives, "negatives": "batch"},
    "sum": {"method_class": SumOverImages},
    "nan": {"method_class": NotANumber},
}
