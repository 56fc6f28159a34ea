"""MoCo v2 in an ordinary LightningModule: our loss, queue and momentum branch, and all else Lightning's.

pip install lightning
python examples/lightning_moco.py

Queue and momentum branch are submodules, so that Lightning's checkpoints hold them. With several processes each of them
enqueues the keys of all: `gather` is the only line about that.
"""

import lightning
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from ssl_core.distributed import gather
from ssl_core.losses import info_nce
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, mlp_head, unit
from ssl_core.train import Step


class MoCo(lightning.LightningModule):
    """Momentum contrast (He et al., 2020, arXiv 1911.05722) around an encoder (n c h w) -> (n f)."""

    def __init__(self, encoder: nn.Module, num_features: int, *, temperature: float = 0.1, lr: float = 0.06) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp_head(num_features, num_features, 128, norm=False)
        self.momentum_branch = MomentumBranch(encoder, self.projector, MomentumConfig(0.99, batch_norm_splits=8))
        self.queue = Queue(QueueConfig(4096), dim=128)
        self.keys: list[Tensor] = []  # of this step
        self.temperature, self.lr = temperature, lr

    @property
    def here(self) -> Step:
        """Place in the training, from which the momentum branch samples the order of its images (shuffle-BN)."""
        return Step(self.global_step, self.trainer.estimated_stepping_batches, self.trainer.num_training_batches)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], index: int) -> Tensor:
        """The loss of two views of each image; their keys are kept for the queue."""
        (first, second), _ = batch
        query = unit(self.projector(self.encoder(first)))
        key = self.momentum_branch(second, self.here)
        self.keys.append(gather(key))
        loss = info_nce(query, key, self.queue.columns(), self.temperature).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        """Momentum branch and queue move after the optimizer, once for all batches that are accumulated."""
        step = self.here
        super().optimizer_step(*args, **kwargs)  # calls training_step
        self.momentum_branch.update_(self.encoder, self.projector, step)
        self.queue.enqueue_(torch.cat(self.keys))
        self.keys.clear()

    def configure_optimizers(self) -> dict[str, object]:
        """SGD, with a cosine over all steps."""
        parameters = [*self.encoder.parameters(), *self.projector.parameters()]
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=5e-4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def train(*, batch_size: int = 256, workers: int = 4, resume: str | None = None, **options: object) -> MoCo:
    """Train on CIFAR-10; further options are those of Lightning's Trainer."""
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    ops = [v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
    normalize = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    augment = v2.Compose([*ops, *normalize])
    images = CIFAR10("data", download=True, transform=lambda image: (augment(image), augment(image)))
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True, num_workers=workers)
    encoder = timm.create_model("resnet18", num_classes=0)
    method = MoCo(encoder, encoder.num_features)
    lightning.Trainer(**options).fit(method, loader, ckpt_path=resume)
    return method


if __name__ == "__main__":
    train(max_epochs=200)
