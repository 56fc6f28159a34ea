import inspect
import sys

import onnx
import onnxruntime
import pytest
import timm
import torch

from ssl_core.backbone import BackboneCard, load_backbone, load_card, make_card_encoder, save_backbone
from ssl_core.evaluate import export
from ssl_core.nn import EncoderConfig, encoder_options

module = sys.modules[export.__module__]

SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
FAMILIES = {
    "resnet": ("resnet18", "imagenet", 3, 70, SMALL_RESNET),
    "five channels": ("resnet18", "imagenet", 5, 32, SMALL_RESNET),
    "small stem": ("resnet18", "small", 3, 32, SMALL_RESNET),
    "small stem and pool": ("resnet18", "small_pool", 3, 64, SMALL_RESNET),
    "vit": ("vit_tiny_patch16_224", "imagenet", 3, 64, {"depth": 1}),
    "vit of many sizes": ("vit_tiny_patch16_224", "imagenet", 3, 64, {"depth": 1, "dynamic_img_size": True}),
    "convnext": ("convnext_atto", "imagenet", 1, 64, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
}


@pytest.fixture
def backbone(tmp_path):
    """Write a backbone of a family, as a run does, with weights and statistics of its own."""

    def make(family):
        name, stem, channels, size, options = FAMILIES[family]
        options = encoder_options(EncoderConfig(name, options=options), size)
        mean, std = (0.4, 0.5, 0.6, 0.3, 0.2)[:channels], (0.2, 0.25, 0.3, 0.1, 0.15)[:channels]
        card = BackboneCard(name, channels, size, mean, std, 0, stem, options, recipe="ssl-any", metrics={"knn": 0.5})
        torch.manual_seed(5)
        encoder = make_card_encoder(card)
        card = card.__class__(**{**vars(card), "num_features": encoder.num_features})
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            encoder.train()(torch.rand(2, channels, size, size))
        save_backbone(tmp_path / "x.safetensors", encoder, card)
        return str(tmp_path / "x.safetensors"), encoder.eval(), card

    return make


def slow_but(quick):
    return [pytest.param(name, marks=[] if name == quick else [pytest.mark.slow]) for name in FAMILIES]


def images(card, number=3):
    return torch.rand(number, card.channels, card.image_size, card.image_size)


@pytest.mark.parametrize("family", slow_but("vit"))
def test_a_torch_program_takes_any_number_of_images_and_gives_the_encoders_features(family, backbone, tmp_path):
    spec, encoder, card = backbone(family)
    path = export(spec, str(tmp_path / "y.pt2"), to="torch")
    program = torch.export.load(path).module()
    with torch.no_grad():
        for number in (1, 4):
            shown = images(card, number)
            assert torch.equal(program(shown), encoder(shown))
    assert load_card(tmp_path / "y.json") == card


@pytest.mark.parametrize("family", slow_but("vit"))
def test_onnxruntime_takes_any_number_of_images_and_gives_the_encoders_features(family, backbone, tmp_path, caplog):
    spec, encoder, card = backbone(family)
    with caplog.at_level("INFO"):
        path = export(spec, str(tmp_path / "y.onnx"), to="onnx")
    assert not caplog.records
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    for number in (1, 4):
        shown = images(card, number)
        (found,) = session.run(None, {"images": shown.numpy()})
        with torch.no_grad():
            expected = encoder(shown)
        assert (torch.from_numpy(found) - expected).abs().max() <= module.TOLERANCE * expected.abs().max()
    assert session.get_outputs()[0].shape == ["n", card.num_features]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.safetensors", "y.json", "y.onnx"]
    assert load_card(tmp_path / "y.json") == card


@pytest.mark.parametrize("family", ["resnet", "five channels", "vit", "vit of many sizes", "convnext"])
def test_timm_loads_the_folder_and_gives_the_same_features_to_the_last_bit(family, backbone, tmp_path, monkeypatch):
    spec, encoder, card = backbone(family)
    folder = export(spec, str(tmp_path / "mine"), to="timm")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    # A model hub gives the same files by their names.
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    shown = images(card)
    for name in (f"local-dir:{folder}", "hf-hub:somebody/mine"):
        loaded = timm.create_model(name, pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(loaded(shown), encoder(shown))
        assert loaded.state_dict().keys() == encoder.state_dict().keys()
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(shown).shape == (3, 7)


@pytest.mark.parametrize("to", ["timm", pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_an_export_that_gives_other_features_is_refused_and_leaves_nothing(to, backbone, tmp_path, monkeypatch):
    spec, _, card = backbone("vit")
    other = make_card_encoder(card).eval()
    maker, name = {"timm": (timm, "create_model"), "onnx": (torch.onnx, "export"), "torch": (torch.export, "export")}[
        to
    ]
    real = getattr(maker, name)
    made = (lambda *_, **__: other) if to == "timm" else lambda _, *rest, **options: real(other, *rest, **options)
    loaded = load_backbone(spec)
    monkeypatch.setattr(module, "load_encoder", lambda _: (loaded, card))
    monkeypatch.setattr(maker, name, made)
    with pytest.raises(ValueError, match=r"differs from vit_.* by .* of the largest feature.*nothing was written"):
        export(spec, str(tmp_path / f"y{module.SUFFIXES.get(to, ('',))[0]}"), to=to)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.safetensors"]


@pytest.mark.parametrize(
    ("out", "to", "message"),
    [
        ("y.onnx", "safetensors", r"--to safetensors writes a \.safetensors file, not .*y\.onnx; .* take --to onnx"),
        ("y", "safetensors", r"--to safetensors writes a \.safetensors file, not .*y; --to timm writes a folder"),
        ("y.pt2", "onnx", r"--to onnx writes a \.onnx file, not .*y\.pt2; for this file take --to torch"),
        ("y.pt", "torch", r"--to torch writes a \.pt2 file, not .*y\.pt;"),
        ("y.safetensors", "timm", r"timm reads a folder, not .*; for this file take --to safetensors"),
        ("y.bin", "coreml", r"to 'coreml' is not one of safetensors, timm, onnx, torch, detectron2"),
        ("y.onnx", "detectron2", r"--to detectron2 writes a \.pth or \.pkl file, not .*y\.onnx; .* take --to onnx"),
        ("y.pkl", "torch", r"--to torch writes a \.pt2 file, not .*y\.pkl; for this file take --to detectron2"),
        ("no/y.pth", "detectron2", r"there is no folder .*no to write y\.pth to"),
        ("no/y.onnx", "onnx", r"there is no folder .*no to write y\.onnx to"),
        ("no/y", "timm", r"there is no folder .*no to write y to"),
        ("there.pt2", "torch", r"there\.pt2 is a folder; give the name of a file"),
        ("full", "timm", r"full is a folder that is not empty; give a new one"),
        ("full/file", "timm", r"file is a file; give a new folder"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_anything_is_loaded(out, to, message, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_encoder", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "there.pt2").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises((ValueError, OSError), match=message):
        inspect.unwrap(export)("run", str(tmp_path / out), to=to)


@pytest.mark.parametrize("family", ["small stem", "small stem and pool"])
def test_what_timm_cannot_build_is_refused_with_the_alternative_before_it_is_read(family, backbone, tmp_path):
    spec, *_ = backbone(family)
    (tmp_path / "x.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match=r"timm cannot build .*: its stem small.*load_backbone, or --to onnx or torch"):
        export(spec, str(tmp_path / "y"), to="timm")
    assert not (tmp_path / "y").exists()


def test_what_timm_has_already_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"timm:resnet50 is timm's own: timm\.create_model\('resnet50'"):
        export("timm:resnet50", str(tmp_path / "y"), to="timm")


def test_a_package_that_is_missing_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ImportError, match=r'onnxruntime not installed: pip install "ssl-core\[onnx\]"'):
        export("nowhere", str(tmp_path / "y.onnx"), to="onnx")


def test_an_encoder_that_one_onnx_file_cannot_hold_is_refused(backbone, monkeypatch):
    _, encoder, card = backbone("resnet")
    monkeypatch.setattr(module, "_ONNX_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"resnet18 has .* GiB, and one ONNX file at most 2; take --to torch"):
        module.onnx_model(encoder, card)


def test_an_empty_folder_is_filled(backbone, tmp_path):
    spec, *_ = backbone("resnet")
    (tmp_path / "y").mkdir()
    assert (export(spec, str(tmp_path / "y"), to="timm") / "config.json").exists()
