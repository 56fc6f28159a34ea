"""Fine-tune a backbone as a classifier with timm: its transforms, its optimizer with layer decay, its schedule.

python examples/fine_tune_with_timm.py runs/photos/backbone.safetensors labelled/train labelled/test

Both folders have a folder of images for each class. The backbone is a timm module, so that whatever takes one takes it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ssl_core.backbone import load_backbone, load_card


def fine_tune(model: nn.Module, loader: DataLoader, *, epochs: int, lr: float, device: torch.device) -> None:
    """Train all layers, those near the image with lower learning rates, as they have less to learn."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05, layer_decay=0.75)
    total = epochs * len(loader)
    schedule = CosineLRScheduler(optimizer, t_initial=total, warmup_t=total // 20, t_in_epochs=False)
    step = 0
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            schedule.step_update(step)
            loss = F.cross_entropy(model(images.to(device)), labels.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(f"epoch {epoch + 1:3} loss {loss.item():.3f}")


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader, *, device: torch.device) -> float:
    """Fraction of the images whose class has the highest logit."""
    model.eval()
    right = [(model(images.to(device)).argmax(dim=1).cpu() == labels) for images, labels in loader]
    return torch.cat(right).double().mean().item()


def main() -> None:
    """Fine-tune, print the accuracy, and save the classifier as a state dict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbone", type=Path, help="a run's backbone.safetensors, with its card beside it")
    parser.add_argument("train", help="folder with a folder of images for each class")
    parser.add_argument("test", help="another with the same classes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("classifier.pt"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    card = load_card(options.backbone.with_suffix(".json"))  # what the backbone was fed: size, mean and deviation
    size = (card.channels, card.image_size, card.image_size)
    seen = {"input_size": size, "mean": card.mean, "std": card.std, "interpolation": "bilinear"}
    train = ImageFolder(options.train, create_transform(**seen, is_training=True, auto_augment="rand-m7-mstd0.5"))
    test = ImageFolder(options.test, create_transform(**seen, crop_pct=0.9))
    loading = {"batch_size": options.batch_size, "num_workers": options.workers}

    model = load_backbone(options.backbone)
    model.reset_classifier(len(train.classes))
    model.to(device)
    loader = DataLoader(train, shuffle=True, drop_last=len(train) > options.batch_size, **loading)
    fine_tune(model, loader, epochs=options.epochs, lr=options.lr, device=device)
    print(f"{accuracy(model, DataLoader(test, **loading), device=device):.1%} of {len(test)} test images are right")
    torch.save(model.state_dict(), options.out)


if __name__ == "__main__":
    main()
