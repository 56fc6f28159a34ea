import dataclasses

import pytest
import torch
from timm import get_pretrained_cfg

from ssl_core.backbone import load_backbone, load_card, make_card_encoder, save_backbone, save_card
from ssl_core.data import DataConfig
from ssl_core.evaluate import encoder as encoder_module
from ssl_core.evaluate import find_card, load_encoder, run_data
from ssl_core.nn import EncoderConfig, make_encoder

IMAGES = torch.rand(2, 3, 16, 16)


def features(module):
    assert not module.training
    with torch.no_grad():
        return module(IMAGES)


def test_a_run_is_its_last_checkpoint(run, method):
    module, card = load_encoder(str(run))
    assert torch.equal(features(module), features(method["encoder"]))
    assert not torch.equal(features(module), features(load_backbone(run / "backbone.safetensors")))
    assert card == load_card(run / "backbone.json")


def test_an_exported_backbone_is_its_file(run):
    module, card = load_encoder(str(run / "backbone.safetensors"))
    assert torch.equal(features(module), features(load_backbone(run / "backbone.safetensors")))
    assert card.recipe == "toy"


def test_projections_are_those_of_the_checkpoint(run, method):
    module, card = load_encoder(str(run), features="projection")
    expected = method["projector"](method["encoder"](IMAGES)).detach()
    assert torch.equal(features(module), expected)
    assert card.num_features == 4


def test_a_random_encoder_is_like_the_run_and_depends_on_its_seed_only(run):
    generator = torch.get_rng_state()
    first, again, other = (load_encoder("random", like=str(run), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(features(first), features(again))
    assert not torch.equal(features(first), features(other))
    assert not torch.equal(features(first), features(load_encoder(str(run))[0]))


@pytest.mark.parametrize("init", ["default", "torch_stem", "torch", "zero_residual"])
def test_a_random_encoder_starts_as_the_runs_own_did(run, card, init):
    save_card(run / "backbone.json", dataclasses.replace(card, init=init))
    encoder, _ = load_encoder("random", like=str(run), seed=3)
    config = EncoderConfig(card.architecture, card.stem, init=init, options=card.options)
    torch.manual_seed(3)
    expected = make_encoder(config, channels=card.channels, image_size=card.image_size)
    torch.testing.assert_close(encoder.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_pixels_are_the_input_of_an_encoder_like_the_run(run):
    module, card = load_encoder("pixels", like=str(run / "backbone.safetensors"))
    assert torch.equal(features(module), IMAGES.flatten(1))
    assert (card.image_size, card.mean, card.num_features) == (16, (0.5, 0.4, 0.3), 768)


def test_a_timm_model_comes_with_its_own_input(monkeypatch, card):
    asked = []

    def offline(config, **options):
        asked.append((config.name, config.stem, config.weights, options))
        return make_card_encoder(card)

    monkeypatch.setattr(encoder_module, "make_encoder", offline)
    _, found = load_encoder("timm:resnet18")
    assert asked == [("resnet18", "imagenet", "timm", {"channels": 3, "image_size": 224})]
    assert found.mean == (0.485, 0.456, 0.406)
    assert (found.image_size, found.num_features) == (224, 8)


@pytest.mark.parametrize(
    ("name", "is_another"),
    [
        *[("resnet50", True), ("resnet18", True), ("wide_resnet50_2", True), ("vit_small_patch16_224", False)],
        *[("vgg16", False), ("resnet50.tv_in1k", False), ("resnet50.a1_in1k", False), ("resnet26", False)],
    ],
)
def test_weights_that_are_not_those_of_the_papers_supervised_network_are_remarked(
    name, is_another, monkeypatch, card, caplog
):
    monkeypatch.setattr(encoder_module, "make_encoder", lambda config, **options: make_card_encoder(card))
    load_encoder(f"timm:{name}")
    remark = (
        f"timm:{name} is {name}.{get_pretrained_cfg(name).tag}; the supervised network of papers is torchvision's, "
    )
    remark += f"by another recipe: timm:{name}.tv_in1k"
    assert caplog.messages == [remark] * is_another


@pytest.mark.parametrize("name", ["no_such_model", "test_vit4"])
def test_a_timm_model_without_weights_is_refused(name):
    with pytest.raises(ValueError, match=f"timm has no pretrained weights for '{name}'"):
        load_encoder(f"timm:{name}")


def test_missing_paths_are_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist; an encoder is a run directory"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="pixels was not trained and has no card"):
        find_card("pixels")
    with pytest.raises(
        FileNotFoundError, match=r"not a run directory, or of a run that has not begun: no backbone\.json"
    ):
        load_encoder(str(tmp_path))
    (run / "checkpoints" / "last.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*last\.pt; .*give its \.safetensors file"):
        load_encoder(str(run))


def test_a_card_of_another_architecture_is_refused(run, card):
    save_card(run / "backbone.json", dataclasses.replace(card, options={}))
    with pytest.raises(ValueError, match=r"(?s)last\.pt does not fit resnet18.*layer1\.1\.conv1\.weight is missing"):
        load_encoder(str(run))


def test_a_card_of_another_projector_is_refused(run):
    card = load_card(run / "backbone.json")
    save_card(run / "backbone.json", dataclasses.replace(card, projector=card.projector[:2]))
    with pytest.raises(ValueError, match=r"projector in .* is not the one that its card describes"):
        load_encoder(str(run), features="projection")


def test_projections_need_a_run_with_a_projector(run):
    with pytest.raises(ValueError, match="projector is in the checkpoint of a run directory alone"):
        load_encoder(str(run / "backbone.safetensors"), features="projection")
    save_card(run / "backbone.json", dataclasses.replace(load_card(run / "backbone.json"), projector=()))
    with pytest.raises(ValueError, match="describes no projector; use features backbone"):
        load_encoder(str(run), features="projection")


def test_like_is_asked_for_and_refused_where_it_has_no_meaning(run):
    with pytest.raises(ValueError, match=r"random has the size of its input from another encoder.*: give like;"):
        load_encoder("random")
    with pytest.raises(ValueError, match="like 'x' is for random and pixels"):
        load_encoder(str(run), like="x")


def test_the_runs_own_data_is_read_from_its_config(run, tmp_path):
    assert run_data(str(run)) == DataConfig(source=str(tmp_path / "images"), workers=0)


def test_tuples_in_a_config_come_back_as_tuples(run):
    (run / "config.yaml").write_text("data: {source: [a, b], mean: [0.5], std: [0.2]}")
    assert run_data(str(run)) == DataConfig(source=["a", "b"], mean=(0.5,), std=(0.2,))


@pytest.mark.parametrize("text", ["", "a: 1", "data: {sorce: x}", "data: {workers: many}", "data: [", "data: 3"])
def test_a_config_without_readable_data_is_refused(run, text):
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml has no readable node data"):
        run_data(str(run))


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*config\.yaml .*give the data to evaluate on"):
        run_data(str(tmp_path))


def test_a_truncated_checkpoint_is_refused(run):
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last\.pt"):
        load_encoder(str(run))


def test_a_backbone_with_another_number_of_channels_is_refused(tmp_path, card):
    path = tmp_path / "x.safetensors"
    save_backbone(path, make_card_encoder(card), card)
    save_card(tmp_path / "x.json", dataclasses.replace(card, channels=1))
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 3, 3, 3\), the encoder's is \(64, 1, 3, 3\)"):
        load_encoder(str(path))
