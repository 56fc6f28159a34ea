"""A probe and a fine-tuning in two gloo processes, which run this file as a script, against one."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ssl_core import distributed
from ssl_core.backbone import load_backbone
from ssl_core.data import DataConfig
from ssl_core.evaluate import embed, evaluate_finetune, evaluate_knn, evaluate_linear, load_classifier
from ssl_core.testing import finished_process

FINETUNED = "finetune-clim_semi-80percent"


def evaluate_all(encoder: str, images: str, out: Path) -> None:
    same = {"data": DataConfig(images, workers=0), "batch_size": 4, "epochs": 2, "progress": False}
    for protocol in ("moco", "cached"):
        (out / protocol).mkdir(parents=True, exist_ok=True)
        evaluate_linear(encoder, protocol=protocol, lr=0.1, crop="random", out=str(out / protocol), **same)
    digits = DataConfig("digits", channels=3, workers=0)  # of which each process has more than a batch
    embed(encoder, str(out / "x.parquet"), data=digits, split="test", neighbors=2, thumbnails=16, progress=False)
    evaluate_knn(encoder, data=digits, k=5, out=str(out), progress=False)
    evaluate_finetune(encoder, protocol="clim_semi", lr=0.01, lr_head=0.1, fraction=0.8, out=str(out), **same)


@pytest.mark.distributed
def test_two_processes_give_what_one_gives(run, tmp_path):
    arguments = [str(run), str(run.parent / "images")]
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = finished_process([*command, *arguments, str(two)])
    assert done.returncode == 0, done.stderr
    evaluate_all(*arguments, one)
    for name in ("moco/linear.json", "cached/linear.json", "knn.json", f"{FINETUNED}.json"):
        expected, found = (json.loads((folder / name).read_text()) for folder in (one, two))
        assert found == expected
    assert (two / "x.parquet").read_bytes() == (one / "x.parquet").read_bytes()
    for folder in ("moco", "cached", f"{FINETUNED}-seed0"):
        expected, found = (load_classifier(each / folder / "linear.safetensors") for each in (one, two))
        torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)
    expected, found = (load_backbone(each / f"{FINETUNED}-seed0" / "backbone.safetensors") for each in (one, two))
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    distributed.setup(torch.device("cpu"))
    evaluate_all(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    distributed.teardown()
