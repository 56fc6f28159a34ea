"""A detector in two gloo processes, which run this file as a script, against one."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ssl_core import distributed
from ssl_core.backbone import BackboneCard, make_card_encoder, save_backbone
from ssl_core.data import DataConfig
from ssl_core.detect.commands import evaluate_detection
from ssl_core.testing import finished_process
from ssl_core.train import read_metrics

PROTOCOL = "voc0712_c4_24k"


def train_and_test(encoder: str, images: str, out: Path) -> None:
    few = {"iterations": 2, "batch_size": 2, "image_size": 64, "lr": 1e-3, "progress": False}
    out.mkdir(exist_ok=True)
    evaluate_detection(encoder, protocol=PROTOCOL, data=DataConfig(images, workers=0), out=str(out), **few)


@pytest.mark.distributed
def test_two_processes_train_and_evaluate_the_same_set_once(voc_folder, tmp_path):
    boxes = [(8, 8, 48, 40), (10, 20, 60, 80), (30, 8, 70, 90), (4, 50, 90, 90)]
    things = [[(index % 2, ("red", "green")[index % 2], box, False)] for index, box in enumerate(boxes)]
    images = {str(index): objects for index, objects in enumerate(things)}
    folder = voc_folder({"train": images, "val": {"a": images["0"], "b": images["1"], "c": []}})
    options = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    card = BackboneCard("resnet18", 3, 64, (0.5,) * 3, (0.2,) * 3, num_features=64, options=options, recipe="toy")
    torch.manual_seed(0)
    save_backbone(tmp_path / "x.safetensors", make_card_encoder(card), card)
    arguments = [str(tmp_path / "x.safetensors"), str(folder)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = finished_process([*command, *arguments, str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    train_and_test(*arguments, tmp_path / "one")
    works = [out / f"detection-{PROTOCOL}-seed0" for out in (tmp_path / "one", tmp_path / "two")]
    # A process takes the mean of its losses over its own regions, of which images can have different numbers.
    losses = [[record["loss"] for record in read_metrics(work) if "loss" in record] for work in works]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    expected, found = (
        [row["image_id"] for row in json.loads((work / "detections.json").read_text())] for work in works
    )
    assert found == expected
    assert set(found) == {"a.png", "b.png", "c.png"}
    expected, found = (json.loads((work.parent / f"detection-{PROTOCOL}.json").read_text()) for work in works)
    assert found.keys() == expected.keys()
    assert found["AP50"] == pytest.approx(expected["AP50"], abs=0.1)


if __name__ == "__main__":
    distributed.setup(torch.device("cpu"))
    train_and_test(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    distributed.teardown()
