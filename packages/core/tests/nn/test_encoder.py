import logging
import math

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ssl_core.nn import EncoderConfig, encoder_options, make_encoder, stem_for, strides_over_a_pixel

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}


def narrow(**changes: object) -> EncoderConfig:
    return EncoderConfig(**{"options": NARROW, **changes})


@pytest.mark.parametrize(
    ("image_size", "stem", "first_size"),
    [(40, "small", 40), (41, "small_pool", 21), (100, "small_pool", 50), (101, "imagenet", 26)],
)
def test_auto_stem_follows_the_image_size(image_size, stem, first_size):
    config = narrow()
    assert stem_for(config, image_size) == stem
    encoder = make_encoder(config, channels=3, image_size=image_size)
    images = torch.zeros(1, 3, image_size, image_size)
    # What the first block sees: convolution stride, then max-pool.
    assert encoder.maxpool(encoder.conv1(images)).shape[-1] == first_size


def test_auto_stem_leaves_other_models_and_timm_weights_alone():
    assert stem_for(EncoderConfig("vit_tiny_patch16_224"), 32) == "imagenet"
    assert stem_for(EncoderConfig("resnet18", weights="timm"), 32) == "imagenet"


def test_a_stem_can_be_asked_for_at_any_size():
    encoder = make_encoder(narrow(stem="small"), channels=3, image_size=224)
    assert encoder.conv1.kernel_size == (3, 3)
    assert isinstance(encoder.maxpool, nn.Identity)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_any_number_of_channels_gives_num_features(channels, stem):
    encoder = make_encoder(narrow(stem=stem), channels=channels, image_size=32)
    assert encoder(torch.randn(2, channels, 32, 32)).shape == (2, encoder.num_features) == (2, 64)


def test_a_deep_stem_is_replaced_at_its_own_width():
    encoder = make_encoder(EncoderConfig("resnet18d", options=NARROW), channels=3, image_size=32)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert encoder.conv1.weight.shape == (64, 3, 3, 3)
    thin = make_encoder(narrow(options=NARROW | {"stem_type": "deep", "stem_width": 4}), channels=3, image_size=32)
    assert thin.conv1.weight.shape == (8, 3, 3, 3)


def test_vits_are_built_for_the_image_size():
    config = EncoderConfig("vit_tiny_patch16_224", options={"depth": 1})
    encoder = make_encoder(config, channels=1, image_size=64)
    assert encoder(torch.randn(2, 1, 64, 64)).shape == (2, 192)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
def test_encoders_are_built_on_the_meta_device(name):
    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig(name), channels=3, image_size=32)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}


def test_the_torch_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in make_encoder(narrow(), channels=3, image_size=32).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_resnet_with_its_own_stem_loads_into_torchvision_and_timm():
    encoder = make_encoder(EncoderConfig("resnet18", "imagenet"), channels=3, image_size=32).eval()
    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(encoder.state_dict(), strict=True)
    plain = timm.create_model("resnet18", num_classes=0)
    plain.load_state_dict(encoder.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), encoder(images))
        torch.testing.assert_close(plain.eval()(images), encoder(images))


@pytest.mark.parametrize(
    ("name", "options", "size", "expected"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, 64, {"img_size": 64, "depth": 1}),
        ("vit_tiny_patch16_224", {"depth": 1}, 224, {"depth": 1}),
        ("vit_tiny_patch16_224", {"depth": 1, "dynamic_img_size": True}, 32, None),
        ("convnext_atto", {"depths": [1, 1, 1, 1]}, 64, {"depths": [1, 1, 1, 1]}),
        ("resnet18", NARROW, 128, NARROW),
    ],
)
def test_timm_makes_of_the_options_a_module_that_takes_the_weights(name, options, size, expected):
    config = EncoderConfig(name, options=options)
    found = encoder_options(config, size)
    assert expected is None or found == expected
    encoder = make_encoder(config, channels=1, image_size=size).eval()
    plain = timm.create_model(name, num_classes=0, in_chans=1, **found).eval()
    plain.load_state_dict(encoder.state_dict(), strict=True)
    images = torch.randn(2, 1, size, size)
    with torch.no_grad():
        assert torch.equal(plain(images), encoder(images))


def test_a_small_stem_keeps_the_parameter_names():
    small = make_encoder(EncoderConfig(), channels=3, image_size=32)
    assert list(small.state_dict()) == list(timm.create_model("resnet18", num_classes=0).state_dict())


@pytest.mark.parametrize("kind", ["backbone", "checkpoint"])
def test_weights_come_from_a_file(tmp_path, kind):
    trained = make_encoder(narrow(), channels=1, image_size=32)
    if kind == "backbone":
        path = tmp_path / "backbone.safetensors"
        save_file(trained.state_dict(), path)
    else:
        path = tmp_path / "last.pt"
        method = {f"encoder.{key}": value for key, value in trained.state_dict().items()}
        torch.save({"method": method | {"projector.weight": torch.zeros(1)}}, path)
    loaded = make_encoder(narrow(weights=str(path)), channels=1, image_size=32)
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_weights_that_do_not_fit_are_refused_with_their_keys(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(make_encoder(narrow(stem="imagenet"), channels=1, image_size=32).state_dict(), path)
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 1, 7, 7\), the encoder's is \(64, 3, 3, 3\)"):
        make_encoder(narrow(weights=str(path)), channels=3, image_size=32)
    with pytest.raises(ValueError, match=r"layer1.1.conv1.weight is missing(\n.*)*and \d+ more"):
        make_encoder(EncoderConfig(weights=str(path)), channels=1, image_size=224)


def test_a_missing_weights_file_is_refused():
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors' is neither random, timm nor a file"):
        make_encoder(narrow(weights="nowhere.safetensors"), channels=3, image_size=32)


@pytest.mark.parametrize("options", [{}, NARROW], ids=["plain", "with options"])
def test_weights_that_cannot_be_fetched_are_named_in_one_line(options, monkeypatch, caplog):
    def create_model(*args, **options):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s")
        raise ConnectionError("no such\nhost")

    monkeypatch.setattr("timm.create_model", create_model)
    with pytest.raises(FileNotFoundError, match=r"weights of resnet18 are neither .*\(no such host\); fetch"):
        make_encoder(EncoderConfig("resnet18", "imagenet", "timm", options=options), channels=3, image_size=64)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig("resnet17"), "'resnet17' is not a timm model"),
        (EncoderConfig("vit_tiny_patch16_224", "small"), "only timm ResNets"),
        (EncoderConfig("resnet18", "small", "timm"), "use stem imagenet"),
        (EncoderConfig("vit_tiny_patch16_224", init="torch"), "init torch is for timm ResNets, not vit_.*default"),
        (EncoderConfig("resnet18", "imagenet", init="torch_stem"), "torch_stem is about a small stem.*use default"),
        (EncoderConfig("ResNet-18"), "did you mean resnet18"),
        (EncoderConfig("vit_tiny"), "did you mean .*vit_tiny_patch16_224"),
        (
            EncoderConfig("vit_tiny_patch16_224", options=NARROW),
            r"{'layers': .* do not fit .*'layers'\); --encoder.opti",
        ),
        (narrow(options={"in_chans": 1}), r"{'in_chans': 1} do not fit resnet18 \(.*'in_chans'\)"),
        (narrow(options={"block": "wide"}), r"{'block': 'wide'} do not fit resnet18"),
        (narrow(options={"output_stride": 5}), r"{'output_stride': 5} do not fit resnet18 \(AssertionError\)"),
        (narrow(options={"layers": [1, 1]}), r"encoder resnet18 does not take 32 px \(.*layer3"),
        (narrow(options=NARROW | {"global_pool": ""}), r"resnet18 gives \(1, 64, 4, 4\) instead of features \(n f\)"),
        (narrow(stem="imagenet", options=NARROW | {"features_only": True}), "resnet18 gives list instead of features"),
        (EncoderConfig("vit_tiny_patch16_224", options={"depth": 1, "img_size": 64}), "does not take 32 px .*dynamic"),
        (EncoderConfig("convnext_atto", options={"depths": [1, 1, 1, 1]}), r"convnext_atto does not take 16 px"),
    ],
    ids=[
        "name",
        "stem-of-a-vit",
        "stem-of-timm-weights",
        "init-of-a-vit",
        "init-of-a-large-stem",
        "name-of-torchvision",
        "half-a-name",
        "options-of-another",
        "option-that-is-set-elsewhere",
        "value-of-an-option",
        "value-that-is-asserted",
        "stages",
        "no-pooling",
        "feature-maps",
        "size-of-a-vit",
        "size-of-a-convnet",
    ],
)
def test_what_an_encoder_cannot_be_is_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(config, channels=3, image_size=16 if config.name == "convnext_atto" else 32)


def test_a_vit_must_take_all_sizes_of_the_views():
    config = EncoderConfig("vit_tiny_patch16_224", options={"depth": 1})
    with pytest.raises(ValueError, match=r"does not take 16 px .*--encoder.options '{dynamic_img_size: true}'"):
        make_encoder(config, channels=3, image_size=32, other_sizes=[16])
    config.options["dynamic_img_size"] = True
    make_encoder(config, channels=3, image_size=32, other_sizes=[16])


def test_num_features_is_what_comes_out_where_last_layers_change_it():
    encoder = make_encoder(EncoderConfig("mobilenetv3_small_050"), channels=3, image_size=32)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.num_features) == (2, 1024)


def test_an_unknown_stem_is_an_error():
    config = narrow()
    object.__setattr__(config, "stem", "tiny")  # past the type checker that tests run with
    with pytest.raises(ValueError, match=r"encoder.stem 'tiny' is not one of"):
        make_encoder(config, channels=3, image_size=32)


# DSSL's CIFAR-10 code is torch's own nn.Conv2d throughout: uniform in +-1 / sqrt(fan_in), so std 1 / sqrt(3 fan_in),
# with 27, 576 and 4608 weights to an output of these three. torchvision's is sqrt(2 / fan_out), with 576, 576, 4608.
TORCH = {"conv1": 27, "layer1.0.conv1": 576, "layer4.1.conv2": 4608}
KAIMING = {"conv1": 576, "layer1.0.conv1": 576, "layer4.1.conv2": 4608}


@pytest.mark.parametrize(
    ("init", "of_torch"),
    [("default", []), ("torch_stem", ["conv1"]), ("torch", list(TORCH)), ("zero_residual", [])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_convolutions_start_as_the_released_codes(init, of_torch):
    encoder = make_encoder(EncoderConfig("resnet18", "small", init=init), channels=3, image_size=32)
    for name in TORCH:
        weight = encoder.get_parameter(f"{name}.weight").detach()
        bound = TORCH[name] ** -0.5
        expected = bound / math.sqrt(3) if name in of_torch else math.sqrt(2 / KAIMING[name])
        # Of n draws a standard deviation varies by sigma / sqrt(2 n) at most, here 1.7 % of 1,728.
        assert weight.std().item() == pytest.approx(expected, rel=0.08), name
        assert (weight.abs().max() <= bound) == (name in of_torch)
    scales = [encoder.layer1[0].bn2.weight, encoder.layer4[1].bn2.weight]
    assert torch.cat(scales).unique().tolist() == [0.0 if init == "zero_residual" else 1.0]
    assert encoder.layer1[0].bn1.weight.unique().tolist() == [1.0]


def test_a_bottleneck_that_starts_as_simsiams_is_the_identity_beside_its_shortcut():
    encoder = make_encoder(EncoderConfig("resnet50", init="zero_residual"), channels=3, image_size=64)
    assert encoder.layer1[1].bn3.weight.unique().tolist() == [0.0]
    images = torch.rand(2, 256, 4, 4)
    assert torch.equal(encoder.layer1[1](images), images)


def test_resnet50_has_the_parameters_of_the_papers_without_its_classifier():
    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig("resnet50"), channels=3, image_size=224)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 23_508_032


# Of 16 px the stem small_pool leaves 8, 8, 4 and 2 to the stages, and the last of them strides over 2 x 2.
@pytest.mark.parametrize(("size", "is_wrong"), [(8, True), (16, False), (32, False)])
def test_a_convolution_that_strides_over_a_single_pixel_is_found(size, is_wrong):
    encoder = make_encoder(EncoderConfig("resnet18", "small_pool"), channels=3, image_size=32)
    assert strides_over_a_pixel(encoder, 3, [32, size]) == is_wrong
    assert encoder.training
