"""The messages of a step, counted in two processes, are those of the table in docs/design/scale.md."""

import math
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_clim import CLIM, CLIMConfig
from ssl_clsa import CLSA, CLSAConfig
from ssl_core import distributed
from ssl_core.nn import QueueConfig
from ssl_core.step import Step
from ssl_core.testing import random_views
from ssl_core.testing.ranks import run_as_ranks
from ssl_core.train import TrainConfig
from ssl_core.train import stepper as stepper_module
from ssl_core.train.stepper import wrapped
from ssl_core.views import ViewConfig, make_view_specs
from ssl_dssl import DSSL, DSSLConfig, make_base
from ssl_leoclr import LeOCLR, LeOCLRConfig
from ssl_sce import SCE, SCEConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/design/scale.md"
ARITHMETIC = str(ROOT / "benchmarks/scale_arithmetic.py")
PROCESSES, ROWS, SIDE, DIM = 2, 6, 8, 5


def specs(*names: str) -> tuple[object, ...]:
    return make_view_specs([ViewConfig(name, SIDE) for name in names])


def of_base(base, queue):
    settings = {name: value for name, value in {"mocov2": {"queue": vars(queue)}}.items() if name == base}
    config = DSSLConfig(settings or base)
    predictor = nn.Linear(DIM, DIM) if make_base(config.base).has_predictor else None
    names = ["dssl_cifar"] * (4 if base in ("simsiam", "byol") else 2)
    return DSSL, {"config": config, "views": specs(*names), "predictor": predictor}


# Of each row of the table: the class of the method and its arguments, with a queue's settings.
METHODS = {
    "SCE": lambda queue: (SCE, {"config": SCEConfig(queue=queue), "views": specs("weak", "strong")}),
    "SCE, symmetric": lambda queue: (
        SCE,
        {"config": SCEConfig(queue=queue, symmetric=True), "views": specs("strong", "strong")},
    ),
    "CLSA": lambda queue: (
        CLSA,
        {"config": CLSAConfig(queue=queue), "views": specs("moco_v2", "moco_v2", "clsa_strong")},
    ),
    "CLIM": lambda queue: (
        CLIM,
        {
            "config": CLIMConfig(queue=queue),
            "views": make_view_specs(
                [ViewConfig("moco_v2", SIDE, count=2), ViewConfig("moco_v2", SIDE, count=2, partner=True)]
            ),
        },
    ),
    "LeOCLR": lambda queue: (
        LeOCLR,
        {"config": LeOCLRConfig(queue=queue), "views": specs("moco_v2_uncropped", "moco_v2", "moco_v2")},
    ),
    "MoCo v2": lambda queue: of_base("mocov2", queue),
    "SimCLR": lambda queue: of_base("simclr", queue),
    "SimSiam": lambda queue: of_base("simsiam", queue),
    "BYOL": lambda queue: of_base("byol", queue),
    "Barlow Twins": lambda queue: of_base("barlow", queue),
}
HAVE_QUEUE = ("SCE", "SCE, symmetric", "CLSA", "CLIM", "LeOCLR", "MoCo v2")
CASES = [(name, False) for name in METHODS] + [(name, True) for name in HAVE_QUEUE]


class Counted:
    """Counts messages, and the bytes that this process hands over in them, while it is entered."""

    # Function of torch.distributed -> place of the tensor that is handed over.
    _SENT: ClassVar = {"all_gather_into_tensor": 1, "all_to_all_single": 1, "reduce_scatter_tensor": 1, "broadcast": 0}
    _UNKNOWN = ("all_reduce", "all_gather", "all_gather_object", "broadcast_object_list", "gather", "reduce", "send")

    def __init__(self) -> None:
        self.messages, self.bytes = Counter(), Counter()
        self._patches = []
        self._all_reduce = dist.all_reduce

    def __enter__(self):
        for name, place in self._SENT.items():
            self._patches.append(patch.object(dist, name, self._counting(name, getattr(dist, name), place)))
        for name in self._UNKNOWN:
            self._patches.append(patch.object(dist, name, self._refused(name)))
        counted = self

        class CountedParallel(DistributedDataParallel):
            def __init__(self, *arguments, **keywords):
                super().__init__(*arguments, **keywords)
                self.register_comm_hook(None, counted._bucket)

        self._patches.append(patch.object(stepper_module, "DistributedDataParallel", CountedParallel))
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_):
        for each in self._patches:
            each.stop()

    def forget(self):
        """Leave out what was counted, as DDP's messages when it is built."""
        self.messages.clear()
        self.bytes.clear()

    def _counting(self, name, function, place):
        def counting(*arguments, **keywords):
            tensor = arguments[place]
            kind = "checks" if name == "all_gather_into_tensor" and tensor.shape == (1,) else "data"
            self.messages[kind] += 1
            self.bytes[kind] += tensor.nbytes
            return function(*arguments, **keywords)

        return counting

    def _refused(self, name):
        def refused(*arguments, **keywords):
            raise AssertionError(f"{name} is not counted yet")

        return refused

    def _bucket(self, state, bucket):
        self.messages["gradients"] += 1
        self.bytes["gradients"] += bucket.buffer().nbytes
        reduced = self._all_reduce(bucket.buffer().div_(PROCESSES), async_op=True)
        return reduced.get_future().then(lambda future: future.value()[0])


def count_as_rank(folder: Path) -> None:
    distributed.setup(torch.device("cpu"))
    found = {}
    for name, is_sharded in CASES:
        torch.manual_seed(0)
        method_class, arguments = METHODS[name](QueueConfig(24, sharded=is_sharded))
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        method = method_class(encoder, nn.Linear(16, DIM), dim=DIM, **arguments)
        trained = sum(value.numel() for value in method.parameters() if value.requires_grad)
        with Counted() as counted:
            forward = wrapped(method, TrainConfig())
            step = Step(index=0, total=2, steps_per_epoch=2)
            counted.forget()
            output = forward(random_views(method, ROWS, 3), step)
            output.loss.backward()
            method.update(output.keys, step)
        assert counted.messages.pop("gradients") == 1, "so few parameters are one bucket"
        assert counted.bytes.pop("gradients") == 4 * trained
        assert counted.bytes.pop("checks", 0) == 8 * counted.messages["checks"]
        found[name, is_sharded] = counted.messages["data"], counted.messages["checks"], counted.bytes["data"]
    if distributed.is_main():
        torch.save(found, folder / "found.pt")


def table() -> dict[str, list[str]]:
    """Cells of each row of the page's table of messages."""
    rows = re.findall(r"^\| (.+?) \|(.+)\|$", PAGE.read_text().partition("## Messages of a step")[2], re.MULTILINE)
    return {name: [cell.strip().strip("`") for cell in cells.split("|")] for name, cells in rows if name in METHODS}


@pytest.mark.distributed
def test_the_messages_of_a_step_are_those_of_the_table(tmp_path):
    run_as_ranks(count_as_rank, (tmp_path,), processes=PROCESSES)
    found = torch.load(tmp_path / "found.pt")
    described = table()
    assert described.keys() == METHODS.keys()
    sizes = {"N": PROCESSES, "n": ROWS, "d": DIM, "image": 4 * 3 * SIDE**2, "__builtins__": {}}
    for name, cells in described.items():
        messages, checks, data, *sharded = cells
        assert found[name, False] == (int(messages), int(checks), eval(data, sizes)), name
        if name in HAVE_QUEUE:
            more_messages, more_checks, more_data = (
                after - before for before, after in zip(found[name, False], found[name, True], strict=True)
            )
            assert (f"{more_messages} + {more_checks}", more_data) == (sharded[0], eval(sharded[1], sizes)), name
        else:
            assert sharded == ["", ""]


def test_the_page_counts_the_parameters_of_its_example():
    from ssl_core.nn import EncoderConfig, make_encoder, mlp_head

    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig("resnet50"), channels=3, image_size=224)
        projector = mlp_head(2048, 2048, 256, num_layers=3, last_norm="plain")
    number = sum(value.numel() for module in (encoder, projector) for value in module.parameters())
    assert f"{number / 1e6:.1f} M parameters" in PAGE.read_text()
    assert math.isclose(number * 4 / 1e6, float(re.search(r"(\d+) MB of gradients", PAGE.read_text())[1]), abs_tol=0.5)


def test_the_page_shows_what_its_arithmetic_prints(capsys):
    runpy.run_path(ARITHMETIC)["main"]([])
    assert f"\n\n{capsys.readouterr().out}\n" in PAGE.read_text()


def test_the_arithmetic_counts_the_recipe_with_sync_batch_norm():
    from ssl_core.nn import EncoderConfig, MomentumConfig, make_encoder, mlp_head

    recipe = yaml.safe_load((ROOT / "packages/sce/src/ssl_sce/recipes/imagenet_large_batch.yaml").read_text())
    assert recipe["train"]["sync_batch_norm"]
    encoder = make_encoder(EncoderConfig(**recipe["encoder"]), channels=3, image_size=224)
    projector, predictor = mlp_head(2048, **recipe["projector"]), mlp_head(256, **recipe["predictor"])
    momentum = MomentumConfig(**recipe["method"]["momentum"])
    config = SCEConfig(queue=QueueConfig(24), symmetric=recipe["method"]["symmetric"], momentum=momentum)
    method = SCE(encoder, projector, config, views=specs("strong", "strong"), dim=256, predictor=predictor)
    arithmetic = runpy.run_path(ARITHMETIC)
    for name, module in {"ENCODER": encoder, "PROJECTOR": projector, "PREDICTOR": predictor}.items():
        assert arithmetic[name] == sum(value.numel() for value in module.parameters()), name

    messages = Counter()
    for layer in method.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # the base of those that are made SyncBatchNorm
            layer.register_forward_hook(lambda _, inputs, output: messages.update(norm=1 + output.requires_grad))

    def gathered(rows):
        messages["gather"] += 2  # with its check, as in the table
        return rows.detach()

    with patch.object(distributed, "gather", gathered):
        method(random_views(method, 2, 3), Step(index=0, total=2, steps_per_epoch=2))
    assert arithmetic["cost"](64, 4096, sync=True, network_s=1.0).messages == messages.total()
    assert f"online branch: {messages['norm']}," in PAGE.read_text()
