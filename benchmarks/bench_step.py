"""A whole training step of every method at the same encoder, batch and views' size, relative to MoCo v2.

python benchmarks/bench_step.py            # ResNet-50 at 224 px and batch 256 on a GPU, the CPU recipe's net elsewhere
python benchmarks/bench_step.py --encoder vit_small_patch16_224 --size 224 --methods "MoCo v2" SCE --profile

Forward, backward, optimizer, momentum update and enqueue, on random views that are already there; data is not counted.
Methods are recipes of the installed packages, their views scaled so that the largest has the size asked for. Published
cost is that of the papers, relative to MoCo v2. Peak memory is what method, views and two steps add: on a GPU to that
of torch's allocator, on the CPU to the resident set of a fresh process. ``--profile`` adds where the time of a step
goes: the longest kernels (on the CPU, operators), and the gaps, in which the device waits for the host.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from machine import Times, describe_machine, measured_in_new_process, resident_bytes, wall_times_s

from ssl_core.allocator import keep_freed_memory
from ssl_core.config import parse_config
from ssl_core.nn import EncoderConfig, MomentumBranch, make_encoder
from ssl_core.train import Step, StepOutput, make_optimizer
from ssl_core.train.captured import WARM_UP, CapturedStep

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
PROFILED_STEPS, KERNELS = 5, 15
Way: TypeAlias = Literal["", "captured", "compiled"]  # of taking a step


def make_step(
    name: str, encoder_name: str | None, size: int, batch: int, device: torch.device, *, way: Way = ""
) -> Any:
    """A function that takes a training step of a row, and how often each branch sees a view in it."""
    package, recipe, changes, _ = ROWS[name]
    module = import_module(f"{package}.train")
    recipes = Path(module.__file__ or "").parent / "recipes"
    arguments = ["--config", recipe, f"--train.batch_size={batch}", *changes]
    if encoder_name is not None and "resnet" not in encoder_name:
        arguments.append("--method.momentum.batch_norm_splits=1")  # there is no BatchNorm to split
    config = parse_config(module.Config, arguments, prog=package, description="", recipes=recipes)
    encoder_config = SMALL if encoder_name is None else EncoderConfig(encoder_name)
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

    forward = torch.compile(method) if way == "compiled" else method

    def body(views: tuple[torch.Tensor, ...], step: Step) -> StepOutput:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            output: StepOutput = forward(views, step)
        output.loss.backward()
        optimizer.step()
        method.update(output.keys, step)
        return output

    take = CapturedStep(body, optimizer) if way == "captured" else body

    def run() -> None:
        take(views, step)

    forwards = _count_forwards(method, run)
    for _ in range(WARM_UP if way == "captured" else 0):
        run()  # as they are; the next is a graph
    return run, forwards


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
    return resident_bytes(lambda: make_step(*json.loads(task), torch.device("cpu"))[0]())


def profile(name: str, run: Callable[[], None], step_s: float, device: torch.device) -> float:
    """Print the kernels that a row's step spends its time in; the share of the step in which the device is busy."""
    is_cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if is_cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(PROFILED_STEPS):
            run()
        if is_cuda:
            torch.cuda.synchronize(device)
    events = [event for event in profiler.key_averages() if (event.device_type.name == "CUDA") == is_cuda]
    events = [event for event in events if not event.is_user_annotation]  # they span kernels
    kernels = [(event.self_device_time_total if is_cuda else event.self_cpu_time_total, event) for event in events]
    kernels.sort(key=lambda kernel: kernel[0], reverse=True)
    busy_s = 1e-6 * sum(us for us, _ in kernels) / PROFILED_STEPS
    launches = sum(event.count for event in events) / PROFILED_STEPS
    print(
        f"\n{name}: busy {1e3 * busy_s:.2f} ms of {1e3 * step_s:.2f} ms, gaps {1e3 * (step_s - busy_s):.2f} ms, ",
        end="",
    )
    print(f"{launches:.0f} launches\n\n| kernel | ms a step | of the step | launches |\n|---|---|---|---|")
    for us, event in kernels[:KERNELS]:
        seconds, key = 1e-6 * us / PROFILED_STEPS, event.key[:70].replace("|", "/")
        print(f"| {key} | {1e3 * seconds:.3f} | {100 * seconds / step_s:.1f} % | {event.count / PROFILED_STEPS:.0f} |")
    return busy_s / step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, help="of the views; 224 on a GPU, 32 elsewhere")
    parser.add_argument("--encoder", help="of timm; ResNet-50 from 64 px on, a narrow ResNet-18 below")
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS), help="MoCo v2 is always there")
    parser.add_argument("--capture", action="store_true", help="each method's step as one CUDA graph too")
    parser.add_argument("--compile", action="store_true", help="each method through torch.compile too")
    parser.add_argument("--profile", action="store_true", help="where the time of each method's step goes")
    parser.add_argument("--json", type=Path, help="file for the numbers")
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
    encoder = arguments.encoder or ("resnet50" if size >= 64 else None)
    net = encoder or "resnet18, 4 blocks of 32 to 256"
    print(f"{net}, {size} px, batch {arguments.batch}, bfloat16")
    names = [row for row in dict.fromkeys(["MoCo v2", *arguments.methods]) if find_spec(ROWS[row][0]) is not None]
    found: dict[str, Times] = {}
    records: list[dict[str, Any]] = []

    def save() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(records, indent=1))

    # Graphs come after steps as they are: what cannot be captured or compiled takes no other row with it.
    ways: list[Way] = ["", *(["captured"] if arguments.capture else []), *(["compiled"] if arguments.compile else [])]
    for way in ways:
        runs: dict[str, Callable[[], None]] = {}
        forwards: dict[str, dict[str, int]] = {}
        peaks: dict[str, int] = {}
        for row in names:
            name = f"{row}, {way}" if way else row
            task = (row, encoder, size, arguments.batch)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            else:
                peaks[name] = measured_in_new_process(__file__, json.dumps(task))
            runs[name], forwards[name] = make_step(*task, device, way=way)
            runs[name]()
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated() - before
        found |= wall_times_s(runs, 3 if arguments.quick else arguments.repeats, device)
        print(
            "\n| method | median ms | spread ms | images/s | to MoCo v2 | published | forwards online + momentum "
            "| peak GiB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        measured = []
        for row, name in zip(names, runs, strict=True):
            times, online, momentum = found[name], forwards[name]["encoder"], forwards[name].get("momentum_branch", 0)
            rate, gib = arguments.batch / times.median, peaks[name] / 2**30
            print(
                f"| {name} | {1e3 * times.median:.1f} | {1e3 * times.low:.1f} to {1e3 * times.high:.1f} "
                f"| {rate:.0f} | {times.median / found['MoCo v2'].median:.2f} "
                f"| {'' if way else ROWS[row][3]} | {online} + {momentum} | {gib:.2f} |"
            )
            measured.append({"method": name, "images_per_s": rate, "gib": gib})
        records += measured
        save()
        for record in measured if arguments.profile else ():
            name = str(record["method"])
            record["busy"] = profile(name, runs[name], found[name].median, device)
            save()


if __name__ == "__main__":
    main()
