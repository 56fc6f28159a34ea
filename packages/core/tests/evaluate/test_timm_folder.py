import dataclasses
import json
import math

import pytest
import timm
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ssl_core.backbone import BackboneCard, make_card_encoder
from ssl_core.evaluate import evaluation_view
from ssl_core.evaluate.features import resized_side
from ssl_core.evaluate.timm_folder import _crop_fraction, timm_readme, write_timm_folder
from ssl_core.views import render, sample_parameters

CARD = BackboneCard(
    "resnet18",
    channels=3,
    image_size=70,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    num_features=8,
    options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    recipe="ssl-any",
    metrics={"knn_top1": 0.47312},
)


@pytest.fixture
def folder(tmp_path):
    write_timm_folder(tmp_path, make_card_encoder(CARD), CARD, name="mine")
    return tmp_path


def test_timm_resizes_and_crops_as_the_evaluation_does_at_every_size():
    for size in range(8, 1025):
        assert math.floor(size / _crop_fraction(size, resized_side(size))) == resized_side(size)


def test_timms_view_of_an_image_is_the_evaluations_up_to_a_level(folder):
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(encoder)
    assert (config["input_size"], config["mean"], config["std"]) == ([3, 70, 70], [*CARD.mean], [*CARD.std])
    levels = torch.randint(256, (90, 120, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(levels).resize((160, 120), Image.Resampling.BILINEAR)
    view = evaluation_view(70)
    size = torch.tensor([[120, 160]])
    index = torch.tensor([0])
    parameters = sample_parameters(view, seed=0, epoch=0, image_index=index, view_index=0, image_size=size)
    (expected,) = render(pil_to_tensor(image), parameters[0], view)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CARD.mean, CARD.std))
    found = timm.data.create_transform(**config)(image) * std + mean
    assert (found - expected).abs().max() < 1.5 / 255


def test_the_configuration_names_no_weights_of_others(folder):
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet18", 0, 8)
    assert config["model_args"] == CARD.options
    given = config["pretrained_cfg"]
    assert not given.keys() & {"tag", "license", "url", "hf_hub_id", "paper_ids", "test_input_size", "label_names"}
    assert (given["crop_pct"], given["interpolation"], given["fixed_input_size"]) == (70 / 80, "bilinear", False)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg
    assert not loaded.get("tag")
    assert not loaded.get("license")


@pytest.mark.parametrize(("dynamic", "fixed"), [(False, True), (True, False)])
def test_a_vit_of_one_size_says_so(tmp_path, dynamic, fixed):
    options = {"img_size": 32, "depth": 1} | ({"dynamic_img_size": True} if dynamic else {})
    card = dataclasses.replace(CARD, architecture="vit_tiny_patch16_224", image_size=32, options=options)
    write_timm_folder(tmp_path, make_card_encoder(card), card, name="mine")
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["fixed_input_size"] is fixed


def test_the_card_says_what_the_encoder_is_and_claims_no_license():
    _, front, text = timm_readme(CARD, "mine").split("---\n")
    values = yaml.safe_load(front)
    assert values["library_name"] == "timm"
    assert "license" not in values
    for said in ("# mine", "trained by ssl-any", "| knn_top1 | 0.4731 |", "| mean | 0.4, 0.5, 0.6 |", "to 80 px"):
        assert said in text
