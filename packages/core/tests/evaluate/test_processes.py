"""Evaluations in two gloo processes, which run this file as a script, against one."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from voc_folder import write_voc

from ssl_core import distributed
from ssl_core.backbone import load_backbone
from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import (
    compare,
    draw_tsne,
    embed,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluate_similarity,
    evaluate_transfer,
    evaluate_voc07,
    find_duplicates,
    load_classifier,
    rank,
    select,
)
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


def look_at_all(encoder: str, other: str, same: str, root: str, many: str, out: Path) -> None:
    out.mkdir(exist_ok=True)
    os.chdir(out)
    torch.set_num_threads(1)
    quiet = {"progress": False}
    digits = DataConfig("digits", channels=3, workers=0)  # of which each process has more than a batch
    encoders = [encoder, "pixels", "random"]  # more than processes
    compare(encoders, data=digits, shots=[1, 5], like=encoder, out=".", **quiet)
    draw_tsne(encoders[:2], data=digits, like=encoder, images_per_class=30, **quiet)
    rank([encoder, other, same], data=digits, images=600, view_images=300, views=2, out=".", **quiet)
    evaluate_similarity(encoder, data=digits, out=".", **quiet)
    sets = DataConfig(root=root, workers=0)
    evaluate_transfer(encoder, sets=["pets", "dtd"], data=sets, out=".", **quiet)
    evaluate_voc07(encoder, shots=[1, "full"], cost=[0.1, 1.0], trials=2, data=sets, out=".", **quiet)
    evaluate_voc07(encoder, protocol="svm_vissl", shots="full", cost=[0.1, 1.0], data=sets, out=".", **quiet)
    Path("many").mkdir(exist_ok=True)
    broken = DataConfig(many, channels=3, workers=0, test_source=many, memory_gib=0.0)
    evaluate_similarity(encoder, data=broken, out="many", **quiet)
    for by in ("typiclust", "kcenter", "random"):
        Path(by).mkdir(exist_ok=True)
        select(encoder, count=20, by=by, data=broken, out=by, **quiet)
    find_duplicates(broken, model=encoder, against="digits", out="many", **quiet)
    find_duplicates(broken, out="exact", **quiet)


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def in_two_processes(*command: str) -> str:
    """Runs a file or a module, and gives what it printed."""
    done = finished_process([*TWO, *command])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.distributed
def test_two_processes_give_what_one_gives(run, tmp_path):
    arguments = [str(run), str(run.parent / "images")]
    one, two = tmp_path / "one", tmp_path / "two"
    in_two_processes(__file__, "evaluate", *arguments, str(two))
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


@pytest.fixture
def many(tmp_path):
    """The digits as files, of which two are broken, one in each process's share."""
    digits = open_source(DataConfig("digits"))
    folder = tmp_path / "many"
    for index in range(600):
        file = folder / str(digits.label(index)) / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.image(index)[0].numpy()).save(file)
    files = sorted(folder.rglob("*.png"))
    for file in (files[9], files[590]):
        file.write_bytes(b"not an image")
    return folder


@pytest.mark.distributed
def test_what_looks_at_encoders_and_images_gives_in_two_processes_what_it_gives_in_one(run, root, many, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["views"] = [{"augmentation": "weak", "size": 16}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(root / "VOCdevkit")
    write_voc(root)
    same, other = (shutil.copytree(run, tmp_path / name) for name in ("same", "other"))
    content = torch.load(other / "checkpoints" / "last.pt", weights_only=True)
    content["method"]["projector.3.weight"][1:] = content["method"]["projector.3.weight"][:1]  # of rank one
    torch.save(content, other / "checkpoints" / "last.pt")
    arguments = [str(each) for each in (run, other, same, root, many)]
    one, two = tmp_path / "one", tmp_path / "two"
    printed = in_two_processes(__file__, "look", *arguments, str(two))
    look_at_all(*arguments, one)
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(two)) for file in two.rglob("*") if file.is_file()) == names
    assert {"compare.json", "tsne.png", "rank.json", "transfer-ssl_transfer.json"} < {*names}
    for name in names:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    ranked = json.loads((two / "rank.json").read_text())["runs"]
    assert ranked[str(run)] == ranked[str(same)] != ranked[str(other)]
    assert json.loads((two / "many/similarity.json").read_text())["num_test"] == 598
    assert len(json.loads((two / "many/duplicates.json").read_text())["broken"]) == 2
    once = ("top-1 in %", "wrote tsne.png", "LiDAR (higher)", "transfer mean", "by kcenter", "leaks ")
    assert {line: printed.count(line) for line in once} == dict.fromkeys(once, 1)


@pytest.mark.distributed
def test_a_command_under_torchrun_prints_once_and_an_error_of_one_process_ends_all(run, tmp_path):
    command = ["-m", "ssl_core", "eval", "similarity", str(run), "--device", "cpu", "--out", str(tmp_path)]
    printed = in_two_processes(*command, "--data.source=digits", "--data.channels=3")
    assert printed.count("similarity intra-class") == 1
    failed = finished_process([*TWO, __file__, "fail", str(tmp_path)], timeout_s=60.0)
    assert failed.returncode == 1
    assert "this one fits nothing" in failed.stderr


def fail_in_one(out: Path) -> None:
    def fit(number: int) -> int:
        if number:
            raise ValueError("this one fits nothing")
        return number

    distributed.shared_out([0, 1], fit)  # process 0 waits for the other


if __name__ == "__main__":
    distributed.setup(torch.device("cpu"))
    what, *paths, folder = sys.argv[1:]
    {"evaluate": evaluate_all, "look": look_at_all, "fail": fail_in_one}[what](*paths, Path(folder))
    distributed.teardown()
