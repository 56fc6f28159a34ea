"""Started by test_distributed.py under torchrun: gradients and queues of SCE on this process's share of a batch.

Without BatchNorm, since its statistics are the one thing that belongs to a process by design.
"""

import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import distributed
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs
from ssl_sce import SCE

BATCH = 8
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
    "empty queue": {"queue_initial": "empty"},
}


def steps(num_local=0, **options):
    """Two steps of training; the gradients of the second and the queue after it."""
    torch.manual_seed(0)
    views = make_view_specs([ViewConfig("weak", 8), ViewConfig("strong", 8)] + [ViewConfig("strong", 8)] * num_local)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    method = SCE(
        encoder, nn.Linear(16, 5), predictor=nn.Linear(5, 5), views=views, dim=5, queue_length=24, **options
    ).double()
    images = torch.randn(2, len(views), BATCH, 3, 8, 8, dtype=torch.float64)
    share = BATCH // distributed.world_size()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    forward = DistributedDataParallel(method, broadcast_buffers=False) if distributed.world_size() > 1 else method
    for index in range(2):
        step = Step(index, total=2, steps_per_epoch=2)
        method.zero_grad()
        output = forward(tuple(images[index][:, own]), step)
        output.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
        method.update(output.keys, step)
    gradients = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.requires_grad}
    return {**gradients, "queue": method.queue.keys, "cursor": method.queue.cursor}


if __name__ == "__main__":
    distributed.setup(torch.device("cpu"))
    results = {name: steps(**options) for name, options in CASES.items()}
    # Every process writes: their queues must agree too.
    torch.save(results, f"{sys.argv[1]}.{distributed.rank()}")
    distributed.teardown()
