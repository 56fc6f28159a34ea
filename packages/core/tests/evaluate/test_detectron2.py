import pickle
import re
import shlex
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from ssl_core.backbone import BackboneCard, load_card, make_card_encoder, save_backbone
from ssl_core.detect.protocol import DETECTION_PROTOCOLS
from ssl_core.evaluate import export
from ssl_core.evaluate.detectron2 import CONFIGS, detectron2_config, detectron2_name

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Narrow; detectron2 builds no ResNet of fewer blocks than those of one with 18 layers.
TINY = {"channels": [4, 8, 16, 32]}
KEYS = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS")


def make(architecture="resnet50", options=TINY, *, colors=3, stem="imagenet"):
    """An encoder with weights of its own, and its card."""
    torch.manual_seed(5)
    mean, std = (MEAN * 2)[:colors], (STD * 2)[:colors]
    card = BackboneCard(architecture, colors, 64, mean, std, 0, stem, options)
    encoder = make_card_encoder(card)
    with torch.no_grad():
        for tensor in encoder.parameters():
            tensor.add_(0.02 * torch.randn_like(tensor))
        for name, tensor in encoder.named_buffers():
            if name.endswith(("mean", "var")):
                tensor.add_(0.1 * torch.rand_like(tensor))
    return encoder.eval(), BackboneCard(**{**vars(card), "num_features": encoder.num_features})


@pytest.fixture
def run(tmp_path, capsys):
    """Export an encoder: what the file holds, and the configuration and the notes that are printed."""

    def export_(encoder, card, name="y.pth"):
        save_backbone(tmp_path / "x.safetensors", encoder, card)
        path = export(str(tmp_path / "x.safetensors"), str(tmp_path / name), to="detectron2")
        _, _, printed = capsys.readouterr().out.partition("command:\n")
        words = shlex.split(" ".join(line.rstrip("\\") for line in printed.splitlines() if line.startswith("  ")))
        config = {key: yaml.safe_load(value) for key, value in zip(words[::2], words[1::2], strict=True)}
        content = torch.load(path, weights_only=True) if path.suffix == ".pth" else pickle.loads(path.read_bytes())
        return content, config, printed

    return export_


# The names in detectron2's ResNet of bottlenecks, of which the n-th stage from res2 on has so many blocks.
def resnet_names(*blocks):
    norm = r"(weight|norm\.(weight|bias|running_mean|running_var|num_batches_tracked))"
    stages = "|".join(
        rf"res{stage}\.([0-{count - 1}]\.conv[123]|0\.shortcut)" for stage, count in enumerate(blocks, start=2)
    )
    return re.compile(rf"(stem\.conv1|{stages})\.{norm}")


@pytest.mark.parametrize(("options", "width"), [({}, 64), (TINY, 4)], ids=["resnet50", "tiny"])
def test_the_file_holds_the_encoders_tensors_by_detectron2s_names_in_order(options, width, run):
    encoder, card = make(options=options)
    content, config, _ = run(encoder, card)
    assert tuple(config[f"MODEL.RESNETS.{key}"] for key in KEYS) == (50, 1, width, 4 * width)
    assert {key: content[key] for key in content if key != "model"} == {
        "__author__": "ssl-core",
        "matching_heuristics": True,
    }
    model, ours = content["model"], encoder.state_dict()
    names = resnet_names(3, 4, 6, 3)
    assert len(model) == 318
    assert all(map(names.fullmatch, model))
    assert sum(name.endswith("num_batches_tracked") for name in model) == 53
    assert list(model) == [detectron2_name(name) for name in ours]
    assert all(torch.equal(*pair) for pair in zip(model.values(), ours.values(), strict=True))
    assert torch.equal(model["res4.2.conv3.norm.running_var"], ours["layer3.2.bn3.running_var"])
    assert torch.equal(model["res5.0.shortcut.norm.bias"], ours["layer4.0.downsample.1.bias"])


def test_a_pkl_holds_numpys_arrays(run, tmp_path):
    encoder, card = make()
    content, *_ = run(encoder, card, "y.pkl")
    assert (content["__author__"], content["matching_heuristics"]) == ("ssl-core", True)
    for (name, tensor), (found, array) in zip(encoder.state_dict().items(), content["model"].items(), strict=True):
        assert (found, type(array)) == (detectron2_name(name), np.ndarray)
        assert torch.equal(torch.from_numpy(array), tensor)
    assert load_card(tmp_path / "y.json") == card
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.safetensors", "y.json", "y.pkl"]


# What detectron2 is told for each.
GEOMETRY = {
    "resnet34": ({}, (34, 1, 64, 64)),
    "resnet101": (TINY, (101, 1, 4, 16)),
    "resnet152": (TINY, (152, 1, 4, 16)),
    "wide_resnet50_2": (TINY, (50, 1, 8, 16)),
    "resnext50_32x4d": ({"channels": [32, 64, 128, 256]}, (50, 32, 2, 128)),
    "resnext101_32x8d": ({"channels": [8, 16, 32, 64]}, (101, 32, 1, 32)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_configuration_says_the_shape_of_the_resnet(name):
    options, expected = GEOMETRY[name]
    config = detectron2_config(*make(name, options))
    assert tuple(config[f"MODEL.RESNETS.{key}"] for key in KEYS) == expected


def test_the_printed_words_are_all_that_detectron2_has_to_be_told(run, tmp_path):
    _, config, printed = run(*make(), "it's.pth")
    assert config == {
        "MODEL.WEIGHTS": str(tmp_path.resolve() / "it's.pth"),
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "INPUT.FORMAT": "RGB",
    }
    assert str(CONFIGS) in printed
    assert "FPN alone" not in printed


def test_gray_images_are_fed_as_gray(run):
    _, config, _ = run(*make(colors=1))
    assert (config["INPUT.FORMAT"], config["MODEL.PIXEL_MEAN"], config["MODEL.PIXEL_STD"]) == ("L", [123.675], [58.395])


def test_basic_blocks_are_for_fpn_alone(run):
    content, config, printed = run(*make("resnet18", {}))
    assert config["MODEL.RESNETS.RES2_OUT_CHANNELS"] == 64  # or detectron2 stops
    assert "with FPN alone: the C4 head has bottleneck blocks" in printed
    assert len(content["model"]) == 120  # with no shortcut in res2


REFUSED = {
    "small stem": (partial(make, stem="small"), r"not small; pretrain with --encoder\.stem imagenet, or take --to"),
    "small stem and pool": (partial(make, stem="small_pool"), r"stem is a 7x7 convolution of .*, not small_pool"),
    "vit": (partial(make, "vit_tiny_patch16_224", {"depth": 1, "img_size": 64}), "ResNets, not a VisionTransformer;"),
    "convnext": (partial(make, "convnext_atto", {"dims": [8, 8, 8, 8]}), "not a ConvNeXt; take --to onnx or torch"),
    "preactivation": (partial(make, "resnetv2_50", {"channels": [8, 8, 8, 8]}), "ResNets, not a ResNetV2;"),
    "channels": (partial(make, colors=5), "reads images of 1 channel or 3, not 5; take --to onnx or torch"),
    "layers": (partial(make, options=TINY | {"layers": [1] * 4}), r"152 layers, not of 1 \+ 1 \+ 1 \+ 1 Bottlenecks"),
    "resnet26": (partial(make, "resnet26"), r"not of 2 \+ 2 \+ 2 \+ 2 Bottlenecks"),
    "other blocks": (partial(make, "res2net50_26w_4s"), r"not of 3 \+ 4 \+ 6 \+ 3 Bottle2necks"),
    "narrow basic blocks": (partial(make, "resnet18"), "basic blocks begin with 64 channels, not 4"),
    "resnet-d": (partial(make, "resnet50d"), r"its ResNet-50 has no conv1\.0\.weight; take --to onnx or torch"),
    "pool in the shortcut": (partial(make, options=TINY | {"avg_down": True}), r"has layer1\.0\.downsample\.1\.weight"),
    "attention": (partial(make, "seresnet50"), r"has no layer1\.0\.se\.fc1\.weight"),
    "group norm": (
        partial(make, "resnet50_gn", {"channels": [32, 64, 128, 256]}),
        r"has bn1\.running_mean of shape \(64,\), not None",
    ),
    "no max-pool": (partial(make, options=TINY | {"replace_stem_pool": True}), r"has no maxpool\.0\.weight"),
    "widths": (partial(make, options={"channels": [4, 4, 8, 8]}), r"has layer2\.0\.conv1\.weight of shape \(8, 16"),
    "antialiasing": (partial(make, "resnetaa50"), "ResNet-50 of the same weights gives other features, for want of"),
    "dilation": (partial(make, options=TINY | {"output_stride": 16}), "this one's antialiasing, dilation, activation"),
    "activation": (partial(make, options=TINY | {"act_layer": "gelu"}), "gives other features"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_detectron2_does_not_build_is_refused_in_a_line(case):
    made, message = REFUSED[case]
    encoder, card = made()
    with pytest.raises(ValueError, match=rf"detectron2 cannot build {card.architecture}: .*{message}") as refused:
        detectron2_config(encoder, card)
    assert "\n" not in str(refused.value)


def test_a_refusal_leaves_nothing(run, tmp_path):
    with pytest.raises(ValueError, match="detectron2 cannot build resnetaa50"):
        run(*make("resnetaa50"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.safetensors"]


def test_a_global_pool_that_detectors_do_not_have_is_no_reason():
    assert detectron2_config(*make(options=TINY | {"global_pool": "max"}))["MODEL.RESNETS.DEPTH"] == 50


C4 = {
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "MODEL.FPN.NORM": None,
}
FPN = {
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NORM": None,
    "MODEL.ROI_MASK_HEAD.NORM": None,
}
EVERY = {
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WARMUP_METHOD": "linear",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}


def of_protocol(name):
    """What the protocol of this name in ssl_core.detect has too."""
    protocol = DETECTION_PROTOCOLS[name]
    detector, steps = protocol.detector, protocol.milestone_steps
    return {
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR" if steps else "WarmupCosineLR",
        "SOLVER.BASE_LR": protocol.lr,
        "SOLVER.IMS_PER_BATCH": protocol.batch_size,
        "SOLVER.WEIGHT_DECAY": protocol.weight_decay,
        "SOLVER.MAX_ITER": protocol.iterations,
        "SOLVER.STEPS": steps or None,
        "SOLVER.GAMMA": 0.1 if steps else None,
        "SOLVER.WARMUP_ITERS": protocol.warmup,
        "SOLVER.WARMUP_FACTOR": protocol.warmup_start,
        "INPUT.MIN_SIZE_TRAIN": list(protocol.short_sides),
        "INPUT.MAX_SIZE_TRAIN": protocol.long_side,
        "INPUT.MIN_SIZE_TEST": protocol.test_sides[0],
        "INPUT.MAX_SIZE_TEST": protocol.test_sides[1],
        "MODEL.MASK_ON": detector.masks,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": detector.train_proposals[0],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": detector.train_proposals[1],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": detector.test_proposals[0],
        "MODEL.RPN.POST_NMS_TOPK_TEST": detector.test_proposals[1],
    }


def data(train, test, classes):
    return {"DATASETS.TRAIN": train, "DATASETS.TEST": test, "MODEL.ROI_HEADS.NUM_CLASSES": classes}


COCO = data(["coco_2017_train"], ["coco_2017_val"], 80)
PROTOCOLS = {
    "voc0712_c4_24k": (
        C4 | data(["voc_2007_trainval", "voc_2012_trainval"], ["voc_2007_test"], 20),
        ["CLSA (2104.07713) table 3: AP50 83.2", "CLIM (2011.02697) table 3", "LeOCLR (2403.06813) table 4"],
    ),
    "coco_c4_2x": (C4 | COCO, ["CLSA (2104.07713) table 3: AP 42.3"]),
    "coco_c4_triplet": (C4 | COCO, ["SCE (2111.14585) table 11: box AP 41.6, mask AP 36.0"]),
    "coco_fpn_1x": (FPN | COCO, ["CLIM (2011.02697) table 4, 1x: box AP 39.5", "DSSL (2110.13555) table 5"]),
    "coco_fpn_2x": (FPN | COCO, ["CLIM (2011.02697) table 4, 2x: box AP 41.8"]),
    "lvis_fpn_90k": (
        FPN
        | data(["lvis_v0.5_train"], ["lvis_v0.5_val"], 1230)
        | {
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1e-4,
            "TEST.DETECTIONS_PER_IMAGE": 300,
            "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
            "DATALOADER.REPEAT_THRESHOLD": 0.001,
        },
        ["CLIM (2011.02697) table 5: box AP 25.5"],
    ),
}


def flat(node, prefix=""):
    for key, value in node.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def test_there_is_a_configuration_for_each_detector_of_the_papers():
    assert sorted(file.stem for file in CONFIGS.iterdir()) == sorted(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_configuration_has_the_papers_values(name):
    config = dict(flat(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())))
    expected = EVERY | of_protocol(name) | PROTOCOLS[name][0]
    assert {key: config.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_header_of_a_configuration_names_the_row_the_command_and_that_it_was_not_run(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    header, _, _ = text.partition("\n\n")
    assert all(line.startswith("#") for line in header.splitlines())
    for row in PROTOCOLS[name][1]:
        assert row in header
    script = "moco/detection/train_net.py" if "Extra" in text else "detectron2/tools/train_net.py"
    assert f"python {script} --num-gpus 8 --config-file {name}.yaml" in header
    assert "ssl-core export RUN x.pth --to detectron2" in header
    assert re.search(r"^# Run: +not run", header, re.M)
    if "_c4_" in name:
        assert "MoCo's script registers it" in header


def test_a_configuration_says_itself_that_it_has_no_weights():
    for file in CONFIGS.iterdir():
        weights = yaml.safe_load(file.read_text())["MODEL"]["WEIGHTS"]
        assert weights  # without any it would train from random ones
