"""SCE in a training loop of your own: plain PyTorch, your images, your encoder, your augmentation.

python examples/own_loop.py

Three lines are ours: the loss, the momentum branch that makes the keys, and the queue that keeps them. The images here
are scikit-learn's digits, so that nothing is downloaded.
"""

import argparse

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ssl_core.data.digits import draw_digits
from ssl_core.evaluate import Features, knn_accuracy
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, mlp_head, unit
from ssl_core.train import Step
from ssl_sce import sce_loss

NORMALIZE = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.1], [0.25])]
PLAIN = v2.Compose(NORMALIZE)
WEAK = v2.Compose([v2.RandomResizedCrop(32, (0.7, 1.0)), *NORMALIZE])
JITTER, BLUR = v2.RandomApply([v2.ColorJitter(0.4, 0.4)], 0.8), v2.RandomApply([v2.GaussianBlur(5)], 0.2)
STRONG = v2.Compose([v2.RandomResizedCrop(32, (0.5, 1.0)), JITTER, BLUR, *NORMALIZE])


class TwoViews(Dataset):
    """Two random views of each image, which is all that the method asks of a data set."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return STRONG(self.images[index]), WEAK(self.images[index])


def train(images: Tensor, *, epochs: int, batch_size: int = 128, dim: int = 64) -> nn.Module:
    """An encoder trained on (n 1 32 32) images, without their labels."""
    small = {"zero_init_last": False, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    encoder = timm.create_model("resnet18", num_classes=0, **small)  # any module (n c h w) -> (n f)
    encoder.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)  # for images of 32 pixels and one channel
    projector = mlp_head(encoder.num_features, 256, dim)
    momentum_branch = MomentumBranch(encoder, projector, MomentumConfig(0.97, "cosine"))  # copies both
    queue = Queue(QueueConfig(length=1024), dim)

    loader = DataLoader(TwoViews(images), batch_size, shuffle=True, drop_last=True)
    total = epochs * len(loader)
    optimizer = torch.optim.SGD([*encoder.parameters(), *projector.parameters()], 0.1, 0.9, weight_decay=5e-4)
    warmup = max(0.05, 2 / total)  # part of the steps; one alone is no warm-up
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total, pct_start=warmup, cycle_momentum=False)
    for epoch in range(epochs):
        for index, (first, second) in enumerate(loader, start=epoch * len(loader)):
            step = Step(index, total, len(loader))
            query = unit(projector(encoder(first)))  # (n d), of length 1
            key = momentum_branch(second, step)  # the same of the momentum branch, without gradient
            loss = sce_loss(query, key, queue.columns(), temperature=0.1, target_temperature=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            momentum_branch.update_(encoder, projector, step)
            queue.enqueue_(key)
        print(f"epoch {epoch + 1:3} loss {loss.item():.3f}")
    return encoder


@torch.no_grad()
def knn(encoder: nn.Module) -> float:
    """Fraction of the test images whose nearest training images have their class."""
    encoder.eval()
    parts = [draw_digits(train=part) for part in (True, False)]
    return knn_accuracy(*(Features(encoder(PLAIN(images)), labels) for images, labels in parts), k=20, num_classes=10)


def main() -> None:
    """Train, and say what it was worth."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    epochs = parser.parse_args().epochs
    images, _ = draw_digits(train=True)
    torch.manual_seed(0)
    encoder = train(images, epochs=epochs)
    print(f"kNN of the trained encoder {knn(encoder):.1%}, of raw pixels {knn(nn.Flatten()):.1%}")


if __name__ == "__main__":
    main()
