import dataclasses
import json
import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from ssl_core.backbone import (
    BackboneCard,
    head_layers,
    load_backbone,
    load_card,
    make_card_encoder,
    make_head,
    save_backbone,
    write_atomically,
)

CARD = BackboneCard(
    architecture="resnet18",
    channels=3,
    image_size=32,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    num_features=16,
    options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    recipe="smoke",
    metrics={"knn_top1": 0.5},
    projector=(("linear", 16, 8, False), ("batch_norm", 8, True, 1e-5), ("relu",)),
)


def trained(card):
    """An encoder whose running statistics are not those of a fresh one."""
    encoder = make_card_encoder(card).train()
    with torch.no_grad():
        encoder(torch.rand(2, card.channels, 32, 32))
    return encoder.eval()


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.slow
def test_the_weights_load_strictly_into_timm_and_torchvision(tmp_path, architecture):
    card = dataclasses.replace(CARD, architecture=architecture, options={})
    encoder = trained(card)
    save_backbone(tmp_path / "backbone.safetensors", encoder, card)
    state = load_file(tmp_path / "backbone.safetensors")

    from_timm = timm.create_model(architecture, num_classes=0)
    from_timm.load_state_dict(state, strict=True)
    from_torchvision = getattr(torchvision.models, architecture)()
    from_torchvision.fc = nn.Identity()
    from_torchvision.load_state_dict(state, strict=True)

    images = torch.rand(2, 3, 32, 32).double()
    with torch.no_grad():
        expected = encoder.double()(images)
        for model in (from_timm, from_torchvision, load_backbone(tmp_path / "backbone.safetensors")):
            torch.testing.assert_close(model.double().eval()(images), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"stem": "small"},
        {"stem": "small_pool"},
        {"channels": 5},
        {"options": {"layers": [1, 1, 2, 1], "channels": [4, 4, 8, 8]}},
    ],
    ids=["small", "small_pool", "channels", "options"],
)
def test_the_card_rebuilds_stem_channels_and_options(tmp_path, changes):
    card = dataclasses.replace(CARD, **changes)
    encoder = trained(card)
    save_backbone(tmp_path / "x.safetensors", encoder, card)
    images = torch.rand(2, card.channels, 32, 32)
    loaded = load_backbone(tmp_path / "x.safetensors")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder(images))


def test_a_channels_last_encoder_is_saved_as_it_would_be_contiguous(tmp_path):
    encoder = trained(CARD)
    save_backbone(tmp_path / "a.safetensors", encoder, CARD)
    save_backbone(tmp_path / "b.safetensors", encoder.to(memory_format=torch.channels_last), CARD)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_card_comes_back_as_it_was(tmp_path):
    save_backbone(tmp_path / "x.safetensors", nn.Linear(1, 1), CARD)
    assert load_card(tmp_path / "x.json") == CARD
    assert CARD.versions["torch"] == torch.__version__.partition("+")[0]


def test_a_card_for_another_architecture_is_refused(tmp_path):
    save_backbone(
        tmp_path / "x.safetensors", make_card_encoder(CARD), dataclasses.replace(CARD, architecture="resnet50")
    )
    with pytest.raises(ValueError, match=r"(?s)x.safetensors does not fit resnet50;.*layer1.0.conv3"):
        load_backbone(tmp_path / "x.safetensors")


def test_weights_of_another_project_are_a_backbone_with_the_card_that_the_message_shows(tmp_path):
    path = tmp_path / "moco.pth.tar"
    with pytest.raises(FileNotFoundError, match=r"no card .*moco.pth.json") as refused:
        load_backbone(path)
    text = re.search(r"{.*}", str(refused.value))[0].replace("resnet50", "resnet18").replace("2048", "512")
    path.with_suffix(".json").write_text(text)
    trained = make_card_encoder(load_card(path.with_suffix(".json")))
    torch.save({"state_dict": {f"module.encoder_q.{key}": v for key, v in trained.state_dict().items()}}, path)
    assert torch.equal(load_backbone(path).conv1.weight, trained.conv1.weight)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no card .*x\.json"):
        load_backbone(tmp_path / "x.safetensors")
    save_backbone(tmp_path / "x.safetensors", nn.Linear(1, 1), CARD)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*x.safetensors"):
        load_backbone(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0, 4, 100, 10_000])
def test_truncated_weights_are_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    save_backbone(path, make_card_encoder(CARD), CARD)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load_backbone(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"mean": 3, "std": [1]}', '{"mean": [0], "std": [1], "color": "red"}'],
    ids=["empty", "list", "no keys", "no list", "unknown key"],
)
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a backbone card"):
        load_card(tmp_path / "x.json")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not .*x\.pt"):
        save_backbone(tmp_path / "x.pt", nn.Linear(1, 1), CARD)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "old"


def test_a_write_replaces_the_file_and_does_not_write_into_it(tmp_path):
    path, link = tmp_path / "x.json", tmp_path / "link"
    path.write_text("old")
    link.hardlink_to(path)
    write_atomically(path, lambda file: file.write(b"new"))
    assert (path.read_text(), link.read_text()) == ("new", "old")


def test_a_head_is_rebuilt_from_its_description():
    head = nn.Sequential(
        nn.Linear(6, 5, bias=False),
        nn.BatchNorm1d(5, eps=1e-3),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4, affine=False),
    )
    head(torch.randn(8, 6))
    layers = json.loads(json.dumps(head_layers(head)))
    rebuilt = make_head(tuple(tuple(layer) for layer in layers))
    rebuilt.load_state_dict(head.state_dict())
    inputs = torch.randn(3, 6)
    assert torch.equal(rebuilt.eval()(inputs), head.eval()(inputs))


def test_a_head_that_a_card_cannot_describe_is_refused():
    with pytest.raises(TypeError, match="not Dropout"):
        head_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    with pytest.raises(TypeError, match="not Bilinear"):
        head_layers(nn.Bilinear(1, 1, 1))
    with pytest.raises(ValueError, match="'gelu'"):
        make_head((("gelu",),))


def test_integers_in_weights_survive(tmp_path):
    encoder = trained(CARD)
    save_backbone(tmp_path / "x.safetensors", encoder, CARD)
    assert load_file(tmp_path / "x.safetensors")["bn1.num_batches_tracked"].item() == 1


def test_weights_of_a_wrong_shape_are_refused(tmp_path):
    state = make_card_encoder(CARD).state_dict()
    state["conv1.weight"] = torch.zeros(8, 1, 7, 7)
    save_backbone(tmp_path / "x.safetensors", nn.Linear(1, 1), CARD)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"conv1.weight is \(8, 1, 7, 7\)"):
        load_backbone(tmp_path / "x.safetensors")
