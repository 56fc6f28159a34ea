"""A whole training step of every method at the same encoder, batch and views' size, relative to MoCo v2.

python benchmarks/bench_step.py            # ResNet-50 at 224 px and batch 256 on a GPU, the CPU recipe's net elsewhere

Forward, backward, optimizer, momentum update and enqueue, on random views that are already there; data is not counted.
Methods are recipes of the installed packages, their views scaled so that the largest has the size asked for. Published
cost is that of the papers, relative to MoCo v2. Peak memory is what method, views and two steps add: on a GPU to that
of torch's allocator, on the CPU to the resident set of a fresh process.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, measured_in_new_process, resident_bytes, wall_times_s

from ssl_core.allocator import keep_freed_memory
from ssl_core.config import parse_config
from ssl_core.nn import EncoderConfig, MomentumBranch, make_encoder
from ssl_core.train import Step, make_optimizer

TWO_RESOLUTIONS = (
    "[{augmentation: moco_cifar, size: [32, 23]}, {augmentation: moco_cifar, size: [32, 23], partner: true}, "
    "{augmentation: moco_cifar, size: [32, 23]}, {augmentation: moco_cifar, size: [32, 23], partner: true}]"
)
# Row -> (package, recipe, changes on its command line, published cost relative to MoCo v2). The first is the unit.
ROWS: dict[str, tuple[str, str, list[str], str]] = {
    "MoCo v2": ("ssl_sce", "mocov2_cifar10", [], "1"),
    "ReSSL": ("ssl_sce", "ressl_cifar10", [], "not published"),
    "SCE": ("ssl_sce", "cifar10", [], "not published"),
    "SCE, symmetric": ("ssl_sce", "cifar10", ["--method.symmetric=true"], "not published"),
    # Hours of 200 epochs on 8 V100: 70 and 166 (Wang and Qi, 2022) against 53 (MoCo's repository).
    "CLSA-Single": ("ssl_clsa", "cifar10", [], "1.32"),
    "CLSA-Multi, one weak": ("ssl_clsa", "cifar10_multi_paper", [], "3.13, of one of the two Multi"),
    "CLSA-Multi, five weak": ("ssl_clsa", "cifar10_multi", [], "3.13, of one of the two Multi"),
    # Hours of 200 epochs on 3 A100: 81 against 68 (Alkhalefi et al., 2024).
    "LeOCLR": ("ssl_leoclr", "cifar10", [], "1.19"),
    "CLIM": ("ssl_clim", "cifar10", [], "not published"),
    "CLIM, two resolutions": ("ssl_clim", "cifar10", [f"--views={TWO_RESOLUTIONS}"], "not published"),
    "SimSiam, two pairs": ("ssl_dssl", "cifar10", ["--method.heavy=none"], "not published"),
    "DSSL over SimSiam": ("ssl_dssl", "cifar10", [], "not published"),
    "DSSL over BYOL": ("ssl_dssl", "cifar10_byol", [], "not published"),
    "DSSL over SimCLR": ("ssl_dssl", "cifar10_simclr", [], "not published"),
    "DSSL over MoCo v2": ("ssl_dssl", "cifar10_mocov2", [], "not published"),
    "DSSL over Barlow Twins": ("ssl_dssl", "cifar10_barlow", [], "not published"),
}
SMALL = EncoderConfig("resnet18", "small_pool", options={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]})


def make_step(package: str, recipe: str, changes: list[str], size: int, batch: int, device: torch.device) -> Any:
    """A function that takes a training step, and how often each branch sees a view in it."""
    module = import_module(f"{package}.train")
    recipes = Path(module.__file__ or "").parent / "recipes"
    arguments = ["--config", recipe, f"--train.batch_size={batch}", *changes]
    config = parse_config(module.Config, arguments, prog=package, description="", recipes=recipes)
    encoder_config = EncoderConfig("resnet50") if size >= 64 else SMALL
    largest = max(side for view in config.views for side in view.sizes)
    scaled = [replace(view, size=[round(side * size / largest) for side in view.sizes]) for view in config.views]
    config = replace(config, views=scaled, encoder=encoder_config)
    specs = config.view_specs()
    torch.manual_seed(0)
    encoder = make_encoder(encoder_config, channels=3, image_size=size)
    method = module.make_method(config, encoder, encoder.num_features, specs)
    method.to(device, memory_format=torch.channels_last)
    for part in method.modules():
        if isinstance(part, MomentumBranch):
            part.use_bfloat16_weights_()  # as in training
    optimizer = make_optimizer(method, config.optim, batch_size=batch)
    sizes = [side for spec in specs for side in spec.sizes]
    views = tuple(
        torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last) for side in sizes
    )
    step = Step(index=1, total=1000, steps_per_epoch=100)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            output = method(views, step)
        output.loss.backward()
        optimizer.step()
        method.update(output.keys, step)

    return run, _count_forwards(method, run)


def _count_forwards(method: torch.nn.Module, run: Callable[[], None]) -> dict[str, int]:
    """How often each branch sees a view in one step."""
    counts: dict[str, int] = {}
    hooks = []
    for name in ("encoder", "momentum_branch"):
        module = getattr(method, name, None)
        if module is not None:
            counts[name] = 0

            def count(*_: object, name: str = name) -> None:
                counts[name] += 1

            hooks.append(module.register_forward_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return counts


def measure(task: str) -> int:
    """Bytes that a method and two of its steps add to a process."""
    name, size, batch = json.loads(task)
    package, recipe, changes, _ = ROWS[name]
    return resident_bytes(lambda: make_step(package, recipe, changes, size, batch, torch.device("cpu"))[0]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, help="of the views; 224 on a GPU, 32 elsewhere")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="3 repeats")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure))
        return
    device = torch.device(arguments.device)
    size = arguments.size or (224 if device.type == "cuda" else 32)
    if device.type == "cpu":
        keep_freed_memory()

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    net = "resnet50" if size >= 64 else "resnet18, 4 blocks of 32 to 256"
    print(f"{net}, {size} px, batch {arguments.batch}, bfloat16\n")
    runs: dict[str, Callable[[], None]] = {}
    forwards: dict[str, dict[str, int]] = {}
    peaks: dict[str, int] = {}
    for name, (package, recipe, changes, _) in ROWS.items():
        if find_spec(package) is None:
            continue
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            peaks[name] = measured_in_new_process(__file__, json.dumps([name, size, arguments.batch]))
        runs[name], forwards[name] = make_step(package, recipe, changes, size, arguments.batch, device)
        runs[name]()
        if device.type == "cuda":
            peaks[name] = torch.cuda.max_memory_allocated() - before
    found = wall_times_s(runs, 3 if arguments.quick else arguments.repeats, device)
    print(
        "| method | median ms | spread ms | images/s | to MoCo v2 | published | forwards online + momentum | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, times in found.items():
        online, momentum = forwards[name]["encoder"], forwards[name].get("momentum_branch", 0)
        print(
            f"| {name} | {1e3 * times.median:.1f} | {1e3 * times.low:.1f} to {1e3 * times.high:.1f} "
            f"| {arguments.batch / times.median:.0f} | {times.median / found['MoCo v2'].median:.2f} "
            f"| {ROWS[name][3]} | {online} + {momentum} | {peaks[name] / 2**30:.2f} |"
        )


if __name__ == "__main__":
    main()
