"""What a training step costs before anything is run: operations, bytes, launches, and the floor that follows on a GPU.

python benchmarks/step_arithmetic.py        # the tables of docs/design/gpu_step.md; needs no GPU, and little memory

Every operation of a whole step (forward of both branches, loss, backward, optimizer, momentum update, enqueue) is
counted on tensors without data. The floor of one is the longer of its operations at the chip's matrix rate and its
bytes at the rate of its memory, with each input read and each output written once, but for BatchNorm, whose inputs are
read twice. An operation is one kernel, but for BatchNorm, the gradients of a convolution and the enqueue, which are
two. Kernels that the cache serves are faster, those that reach neither rate slower.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import ssl_sce.train
from ssl_core.build import build
from ssl_core.config import parse_config
from ssl_core.train import Step
from ssl_sce.train import Config, make_method

# H100 SXM: dense bfloat16 operations and bytes of memory a second (NVIDIA's data sheet).
FLOPS, BYTES = 989e12, 3.35e12
# Of a kernel that Python launches through PyTorch, and of one that a graph starts after another: estimates.
LAUNCH_S, START_S = 8e-6, 1.5e-6
MOCO = ["--method.coefficient=1", "--method.temperature=0.2"]
MOCO += ["--projector={num_layers: 2, hidden_dim: 4096, norm: false, last_norm: none}"]
VIT = ["--encoder={name: vit_small_patch16_224}"]
# Row -> (views' size, batch, command line of ssl-sce-train).
STEPS: dict[str, tuple[int, int, list[str]]] = {
    "ResNet-18, 32 px, MoCo v2": (32, 512, ["--config=mocov2_cifar10"]),
    "ResNet-18, 32 px, SCE": (32, 512, ["--config=cifar10"]),
    "the same, BatchNorm not split": (32, 512, ["--config=cifar10", "--method.momentum.batch_norm_splits=1"]),
    "ResNet-50, 224 px, MoCo v2": (224, 256, ["--config=imagenet", *MOCO]),
    "ResNet-50, 224 px, SCE": (224, 256, ["--config=imagenet"]),
    "ViT-S/16, 224 px, MoCo v2": (224, 256, ["--config=imagenet", *MOCO, *VIT]),
    "ViT-S/16, 224 px, SCE": (224, 256, ["--config=imagenet", *VIT]),
}
BATCH_NORM, BATCH_NORM_BACKWARD = "aten.native_batch_norm", "aten.native_batch_norm_backward"
READ_TWICE = {BATCH_NORM: 1, BATCH_NORM_BACKWARD: 2}  # that many of the first inputs
TWO_KERNELS = {BATCH_NORM, BATCH_NORM_BACKWARD, "aten.convolution_backward", "ssl_core.enqueue_"}
PARTS = ("products", "BatchNorm", "optimizer and averages", "the rest")


class Cost(NamedTuple):
    """Of one operation: floating-point operations, bytes, kernels, and seconds at the least."""

    flops: float
    bytes: float
    kernels: int

    @property
    def floor_s(self) -> float:
        """Seconds on a chip that reaches both of its rates."""
        return max(self.flops / FLOPS, self.bytes / BYTES)


class Counter(TorchDispatchMode):
    """Keeps the cost of each operation, by part of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, list[Cost]] = {part: [] for part in PARTS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func.overloadpacket)
        read, written = tensors((args, kwargs)), tensors(result)
        if func._schema.is_mutable:
            arguments = zip(func._schema.arguments, args, strict=False)
            written = tensors([value for argument, value in arguments if argument.is_write])
        elif func.is_view or name.startswith("aten.empty") or {*map(storage, written)} <= {*map(storage, read)}:
            return result  # nothing is launched
        read += read[: READ_TWICE.get(name, 0)]
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        if flops:
            part = "products"
        elif name in READ_TWICE:
            part = "BatchNorm"
        elif any(word in name for word in ("fused_sgd", "momentum_update", "enqueue")):
            part = "optimizer and averages"
        else:
            part = "the rest"
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))
        self.costs[part].append(Cost(flops, moved, 2 if name in TWO_KERNELS else 1))
        return result


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """A number of the memory that a tensor is a view of."""
    return tensor.untyped_storage()._cdata


def count(size: int, batch: int, arguments: list[str]) -> dict[str, list[Cost]]:
    """The costs of a step of SCE, by part."""
    recipes = Path(ssl_sce.train.__file__).parent / "recipes"
    arguments = [*arguments, f"--train.batch_size={batch}"]
    # Shuffle-BN's order is drawn on the CPU, where it would be counted here.
    arguments += ["--method.momentum.shuffle=false"]
    config = parse_config(Config, arguments, prog="ssl-sce-train", description="", recipes=recipes)
    parts = build(config, make_method, channels=3, device=torch.device("cpu"))
    method, optimizer = parts.method, parts.optimizer
    for group in optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = tuple(torch.empty(batch, 3, size, size).to(memory_format=torch.channels_last) for _ in range(2))
    with FakeTensorMode(allow_non_fake_inputs=True), Counter() as counter:
        step = Step(index=1, total=1000, steps_per_epoch=100)
        with torch.autocast("cpu", torch.bfloat16):
            output = method(views, step)
        output.loss.backward()
        optimizer.step()
        method.update(output.keys, step)
    return counter.costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = {name: count(*step) for name, step in STEPS.items()}
    columns = (
        "TFLOP",
        "GB",
        "kernels",
        "launched from Python, ms",
        "from a graph, ms",
        "floor, ms",
        "images/s at the floor",
    )
    print(f"| step | batch | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, costs in rows.items():
        every = [cost for part in costs.values() for cost in part]
        batch, kernels = STEPS[name][1], sum(cost.kernels for cost in every)
        floor_s = sum(cost.floor_s for cost in every)
        cells = [f"{sum(cost.flops for cost in every) / 1e12:.2f}", f"{sum(cost.bytes for cost in every) / 1e9:.1f}"]
        cells += [f"{kernels:,}", f"{1e3 * LAUNCH_S * kernels:.1f}", f"{1e3 * START_S * kernels:.1f}"]
        cells += [f"{1e3 * floor_s:.1f}", f"{batch / floor_s:,.0f}"]
        print(f"| {name} | {batch} | {' | '.join(cells)} |")
    print("\n| floor, ms (kernels) | " + " | ".join(PARTS) + " |")
    print("|---|" + "---|" * len(PARTS))
    for name, costs in rows.items():
        cells = (
            f"{1e3 * sum(cost.floor_s for cost in part):.1f} ({sum(cost.kernels for cost in part):,})"
            for part in costs.values()
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
