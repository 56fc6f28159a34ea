"""Each file is made up, with the names that the project's released code gives to what it saves."""

import argparse
import functools
import gzip
import logging
import os
import pickle
import shlex
import sys
from collections import OrderedDict, deque
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from ssl_core.backbone import BackboneCard, save_backbone
from ssl_core.nn import EncoderConfig, load_weights_, make_encoder

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
RESNET = EncoderConfig("resnet18", "imagenet", options=NARROW)
VIT = EncoderConfig("vit_tiny_patch16_224", options={"depth": 1, "embed_dim": 6})


def make(config, *, channels=3, image_size=32, **changes):
    return make_encoder(EncoderConfig(**vars(config) | changes), channels=channels, image_size=image_size)


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def numbered(prefix, state):
    """Names in ``nn.Sequential(*list(resnet.children())[:-1])``."""
    tops = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{prefix}{tops[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in state.items()}


def head(*names):
    return {name: torch.ones(2, 2) for name in names}


class Options(OrderedDict):
    """As yacs' CfgNode: a mapping."""


class Settings:
    """As OmegaConf's DictConfig: an object with attributes."""

    def __init__(self, content):
        self.content = content


class Command:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


# (own state, that of another encoder) -> content of the file, and the prefix that is said
RESNETS = {
    "MoCo v2": (
        lambda own, other: {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": under("module.encoder_q.", own)
            | head("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.weight")
            | under("module.encoder_k.", other)
            | head("module.queue", "module.queue_ptr"),
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}, "param_groups": [{"lr": 0.03}]},
        },
        "state_dict.module.encoder_q.",
    ),
    "MoCo v3": (
        lambda own, other: {
            "state_dict": under("module.momentum_encoder.", other)
            | under("module.base_encoder.", own)
            | head("module.base_encoder.fc.0.weight", "module.predictor.0.weight"),
            "scaler": {"scale": 65536.0},
        },
        "state_dict.module.base_encoder.",
    ),
    "SimSiam": (
        lambda own, other: {
            "state_dict": under("module.encoder.", own)
            | head("module.encoder.fc.0.weight", "module.predictor.0.weight")
        },
        "state_dict.module.encoder.",
    ),
    "BYOL of sthalles": (
        lambda own, other: {
            "online_network_state_dict": numbered("encoder.", own) | head("projetion.net.0.weight"),
            "target_network_state_dict": numbered("encoder.", other) | head("projetion.net.0.weight"),
        },
        "online_network_state_dict.encoder.",
    ),
    "BYOL of lucidrains": (
        lambda own, other: (
            under("target_encoder.net.", other)
            | under("net.", own)
            | under("online_encoder.net.", own)
            | head("online_encoder.projector.net.0.weight")
        ),
        "online_encoder.net.",
    ),
    "Barlow Twins": (
        lambda own, other: {
            "epoch": 1,
            "model": under("module.backbone.", own) | head("module.projector.0.weight", "module.bn.running_mean"),
        },
        "model.module.backbone.",
    ),
    "SwAV": (
        lambda own, other: under("module.", own) | head("module.projection_head.0.weight", "module.prototypes.weight"),
        "module.",
    ),
    "DINO": (
        lambda own, other: {
            "student": under("module.backbone.", other) | head("module.head.mlp.0.weight"),
            "teacher": under("module.backbone.", own) | head("module.head.mlp.0.weight"),
            "args": argparse.Namespace(arch="resnet50", lr=0.1),
            "dino_loss": head("center"),
        },
        "teacher.module.backbone.",
    ),
    "solo-learn": (
        lambda own, other: {
            "state_dict": under("momentum_backbone.", other)
            | under("backbone.", own)
            | head("projector.0.weight", "classifier.weight"),
            "hyper_parameters": {"cfg": OrderedDict(backbone="resnet18"), "lr": np.float64(0.1)},
            "pytorch-lightning_version": "2.0.2",
        },
        "state_dict.backbone.",
    ),
    "solo-learn before 1.0.4": (
        lambda own, other: {"state_dict": under("momentum_encoder.", other) | under("encoder.", own)},
        "state_dict.encoder.",
    ),
    "lightly": (
        lambda own, other: {
            "state_dict": numbered("backbone_momentum.", other)
            | numbered("backbone.", own)
            | head("projection_head.layers.0.weight", "projection_head.0.weight"),
        },
        "state_dict.backbone.",
    ),
    "VISSL": (
        lambda own, other: {
            "phase": 1,
            "loss": under("moco_encoder.trunk._feature_blocks.", other),
            "classy_state_dict": {
                "base_model": {
                    "model": {"trunk": under("_feature_blocks.", own), "heads": head("0.clf.0.weight")},
                    "meters": {},
                }
            },
        },
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
    ),
    "mmselfsup": (
        lambda own, other: {
            "meta": {"epoch": 200, "CLASSES": None},
            "state_dict": under("encoder_k.module.0.", other)
            | under("backbone.", own)
            | head("encoder_k.module.1.mlp.0.weight", "neck.mlp.0.weight", "queue"),
        },
        "state_dict.backbone.",
    ),
    "DenseCL": (
        lambda own, other: {
            "state_dict": under("encoder_q.0.", own)
            | under("encoder_k.0.", other)
            | under("backbone.", own)
            | head("encoder_q.1.mlp.0.weight", "queue2"),
        },
        "state_dict.backbone.",
    ),
    "PixPro": (
        lambda own, other: {
            "opt": argparse.Namespace(model="PixPro"),
            "model": under("module.encoder.", own)
            | under("module.encoder_k.", other)
            | head("module.value_net.weight"),
        },
        "model.module.encoder.",
    ),
    "torchvision": (
        lambda own, other: (
            {key: value for key, value in own.items() if "num_batches" not in key} | head("fc.weight", "fc.bias")
        ),
        "",
    ),
    "timm": (
        lambda own, other: {
            "arch": "resnet18",
            "state_dict": other | head("fc.weight"),
            "state_dict_ema": under("module.", own) | head("module.fc.weight"),
            "args": argparse.Namespace(model="resnet18"),
        },
        "state_dict_ema.module.",
    ),
    "torch.compile": (lambda own, other: under("_orig_mod.", own), "_orig_mod."),
}
VITS = {
    "MAE": (
        lambda own, other: {"model": own | head("mask_token", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")},
        "model.",
    ),
    "iBOT": (
        lambda own, other: {
            "student": under("module.backbone.", other) | head("module.backbone.masked_embed"),
            "teacher": under("backbone.", own) | head("backbone.masked_embed", "head.mlp.0.weight"),
        },
        "teacher.backbone.",
    ),
}


@pytest.mark.parametrize(
    ("config", "content", "prefix"),
    [(RESNET, *case) for case in RESNETS.values()] + [(VIT, *case) for case in VITS.values()],
    ids=[*RESNETS, *VITS],
)
def test_the_encoder_of_another_project_is_taken_and_the_rest_is_said_to_be_left(
    tmp_path, caplog, config, content, prefix
):
    path, trained = tmp_path / "theirs.pth.tar", make(config).state_dict()
    written = content(trained, {key: torch.zeros_like(value) for key, value in trained.items()})
    torch.save(written, path)
    with caplog.at_level(logging.INFO):
        loaded = make(config, weights=str(path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.items() if value.is_floating_point())
    (said,) = [message for message in caplog.messages if message.startswith("loaded")]
    assert f"tensors of the encoder from {path}" in said
    assert f"(prefix {prefix})" in said or not prefix
    assert ("; left: " in said) == (written.keys() != {f"{prefix}{key}" for key in trained})


def test_what_was_left_is_counted_where_it_parts_from_the_prefix(tmp_path):
    content, _ = RESNETS["MoCo v2"]
    encoder = make(RESNET)
    torch.save(content(encoder.state_dict(), encoder.state_dict()), tmp_path / "moco.pth")
    assert load_weights_(encoder, tmp_path / "moco.pth", name="resnet18") == (
        f"loaded 65 of 65 tensors of the encoder from {tmp_path / 'moco.pth'} (prefix state_dict.module.encoder_q.); "
        "left: state_dict.module.encoder_k.* (65), state_dict.module.encoder_q.fc.* (2), state_dict.module.queue, "
        "state_dict.module.queue_ptr; state_dict.module.encoder_k. would fit too"
    )


def test_files_of_before_2020_and_safetensors_are_read(tmp_path):
    trained = make(RESNET).state_dict()
    content = {"model": under("module.", trained), "opt": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    save_file(trained | head("fc.weight"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("old.pth.tar", "model.safetensors"):
        loaded = make(RESNET, weights=str(tmp_path / name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in trained.items())


@pytest.mark.parametrize("beside", [{}, {"model": 1}], ids=["alone", "beside a state dict"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, beside, is_zip):
    monkeypatch.chdir(tmp_path)
    torch.save(beside | {"state_dict": Command()}, "hostile.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"^hostile.pth is not a readable weights file: it holds posix.*not read; "):
        make(RESNET, weights="hostile.pth")
    assert not os.path.exists("executed")


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_of_libraries_are_left_out_and_not_imported(tmp_path, monkeypatch, is_zip):
    trained = make(RESNET).state_dict()
    scheduler = torch.optim.lr_scheduler.LRScheduler.__new__(torch.optim.lr_scheduler.LRScheduler)
    beside = [
        scheduler,
        Settings({"lr": 0.1}),
        Options(lr=0.1),
        np.float64(0.1),
        np.arange(3),
        Path(),
        slice(1),
        datetime.now(),
        Options,
    ]
    content = {"state_dict": trained, "hyper_parameters": beside}
    torch.save(content, tmp_path / "theirs.ckpt", _use_new_zipfile_serialization=is_zip)
    for name in ("Settings", "Options"):
        monkeypatch.delattr(sys.modules[__name__], name)  # as where the library is not installed
    loaded = make(RESNET, weights=str(tmp_path / "theirs.ckpt")).state_dict()
    assert torch.equal(loaded["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (deque([OrderedDict()]), "collections.deque"),
        (functools.partial(OrderedDict, lr=1), "functools.partial"),
    ],
)
def test_objects_that_cannot_be_left_out_are_named_with_the_remedy(tmp_path, beside, name, is_zip):
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": {}, "meters": beside}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf"it holds {name}.*, which is not read; save its state_dict alone$"):
        make(RESNET, weights=str(path))


@pytest.mark.parametrize("name", ["model.bin", "model.SAFETENSORS", "model.pth"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    trained = make(RESNET).state_dict()
    save_file(trained, tmp_path / name)
    assert torch.equal(make(RESNET, weights=str(tmp_path / name)).state_dict()["conv1.weight"], trained["conv1.weight"])


def test_torch_save_is_known_under_the_name_of_safetensors(tmp_path):
    trained, path = make(RESNET).state_dict(), tmp_path / "model.safetensors"
    torch.save(trained, path)
    assert torch.equal(make(RESNET, weights=str(path)).state_dict()["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS, .*; run git lfs pull"),
        (gzip.compress(b"weights"), "a gzip archive; unpack it"),
        (b"<!DOCTYPE html><html>", "a page of HTML; download the file itself"),
        (b"encoder: resnet50\n", "text"),
    ],
    ids=["pointer", "gzip", "HTML", "text"],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_file_of_another_kind_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"is not a readable weights file: {message}$"):
        make(RESNET, weights=str(tmp_path / name))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_tensor(tmp_path, value):
    trained = under("module.", make(RESNET).state_dict())
    trained["module.bn1.running_var"][0] = value
    torch.save({"state_dict": trained}, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"diverged.pth holds NaN or infinity in state_dict.module.bn1.running_var; "):
        make(RESNET, weights=str(tmp_path / "diverged.pth"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cut.pth", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("cut.old.pth", lambda path: path.write_bytes(path.read_bytes()[:5000])),
        ("text.pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
        ("haiku.pkl", lambda path: path.write_bytes(pickle.dumps({"experiment_state": np.zeros(3)}, protocol=2))),
        ("data.npz", lambda path: np.savez(path, a=np.zeros(3))),
        ("empty.pth", lambda path: path.write_bytes(b"")),
    ],
    ids=["cut", "cut before 2020", "pointer", "pickle", "numpy", "empty"],
)
def test_what_is_no_weights_file_is_refused_in_one_line(tmp_path, name, write):
    path = tmp_path / name
    torch.save({"state_dict": make(RESNET).state_dict()}, path, _use_new_zipfile_serialization="old" not in name)
    write(path)
    with pytest.raises(ValueError, match=rf"{name} is not a readable weights file: [^\n]+$"):
        make(RESNET, weights=str(path))


@pytest.mark.parametrize("num_bytes", [100, 5000, -100])
def test_a_file_that_ends_too_early_is_said_to(tmp_path, num_bytes):
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": make(RESNET).state_dict()}, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(
        ValueError, match=r"cut.pth is not a readable weights file: a zip archive that is truncated, or"
    ):
        make(RESNET, weights=str(path))


def test_weights_under_no_such_names_are_refused_in_one_line_with_the_prefixes_found(tmp_path):
    path = tmp_path / "theirs.pth"
    layers = head(*(f"vit.layer.{layer}.weight" for layer in range(12)), "classifier.weight")
    torch.save({"state_dict": layers}, path)
    with pytest.raises(
        ValueError,
        match=r"theirs.pth holds no encoder with the names of resnet18; it holds state_dict.classifier.\* \(1\), "
        r"state_dict.vit.\* \(12\)$",
    ):
        make(RESNET, weights=str(path))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="it holds no state dict"):
        make(RESNET, weights=str(path))


def test_of_two_encoders_that_nothing_tells_apart_none_is_taken(tmp_path):
    trained = make(RESNET).state_dict()
    torch.save(under("left.", trained) | under("right.", trained), tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"two.pth holds 2 encoders, under left., right.; save one alone"):
        make(RESNET, weights=str(tmp_path / "two.pth"))


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({}, {"stem": "small"}, "it has another stem: --encoder.stem imagenet"),
        ({"stem": "small"}, {}, r"it has another stem: --encoder.stem small \(or small_pool\)"),
        ({}, {"channels": 1}, "it takes 3 channels: --data.channels 3"),
        ({"options": NARROW | {"layers": [2, 1, 1, 1]}}, {}, r"layer1.1.conv1.weight is not in the encoder"),
        ({}, {"options": NARROW | {"layers": [2, 1, 1, 1]}}, r"layer1.1.conv1.weight is missing"),
    ],
    ids=["imagenet stem", "small stem", "channels", "deeper", "shallower"],
)
@pytest.mark.parametrize("spelled", [under, numbered], ids=["named", "numbered"])
def test_an_encoder_that_does_not_fit_is_refused_with_what_to_set(tmp_path, theirs, ours, message, spelled):
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": spelled("module.backbone.", make(RESNET, **theirs).state_dict())}, path)
    if spelled is numbered:
        message = message.replace("layer1", "4")
    with pytest.raises(ValueError, match=rf"(?s)theirs.pth does not fit resnet18;.*{message}"):
        make(RESNET, weights=str(path), **ours)


@pytest.mark.parametrize("file", ["", "backbone.safetensors", "checkpoints/last.pt"])
@pytest.mark.parametrize("ours", ["resnet34", "vit_tiny_patch16_224"])
def test_an_encoder_of_a_run_is_refused_with_the_options_that_it_was_made_with(tmp_path, file, ours):
    encoder, card = make(RESNET, stem="small_pool"), BackboneCard("resnet18", 3, 32, (0.5,) * 3, (0.2,) * 3, 64)
    save_backbone(tmp_path / "backbone.safetensors", encoder, replace(card, stem="small_pool", options=NARROW))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"method": under("encoder.", encoder.state_dict())}, tmp_path / "checkpoints/last.pt")
    with pytest.raises(ValueError, match=r"it was made with --encoder\.name resnet18") as refused:
        make(EncoderConfig(ours), weights=str(tmp_path / file), image_size=224)
    words = shlex.split(str(refused.value).partition("made with ")[2].partition(":\n")[0])
    assert words[::2] == ["--encoder.name", "--encoder.options", "--encoder.stem"]
    name, options, stem = words[1::2]
    make(EncoderConfig(name, stem, str(tmp_path / file), options=yaml.safe_load(options)))


def test_a_vit_for_another_size_is_refused_with_options_that_take_it(tmp_path):
    trained, path = make(VIT, image_size=64).state_dict(), tmp_path / "vit.pth"
    torch.save(trained, path)
    with pytest.raises(
        ValueError, match=r"it is for 64 px: --encoder.options '{img_size: 64, dynamic_img_size: true}'"
    ):
        make(VIT, weights=str(path))
    options = VIT.options | {"img_size": 64, "dynamic_img_size": True}
    loaded = make(VIT, weights=str(path), options=options)
    assert torch.equal(loaded.pos_embed, trained["pos_embed"])


def test_a_run_directory_stands_for_its_backbone_and_a_tilde_for_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = make(RESNET).state_dict()
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is a folder without backbone.safetensors; give a file"):
        make(RESNET, weights=str(tmp_path / "run"))
    save_file(trained, tmp_path / "run" / "backbone.safetensors")
    assert torch.equal(make(RESNET, weights="~/run").state_dict()["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize("url", ["https://dl.fbaipublicfiles.com/moco/moco_v2_800ep_pretrain.pth.tar", "s3://b/x.pt"])
def test_an_address_is_to_be_downloaded(url):
    with pytest.raises(ValueError, match=r"download it and give the file"):
        make(RESNET, weights=url)
