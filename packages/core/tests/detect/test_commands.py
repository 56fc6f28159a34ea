import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core import cli
from ssl_core.backbone import BackboneCard, make_card_encoder, save_backbone
from ssl_core.data import DataConfig
from ssl_core.detect.commands import evaluate_detection
from ssl_core.detect.metrics import Detections
from ssl_core.detect.model import Detector, DetectorConfig
from ssl_core.detect.predict import _COLORS, detect, draw_detections, results
from ssl_core.detect.protocol import DETECTION_PROTOCOLS
from ssl_core.detect.segments import encode_masks
from ssl_core.detect.sets import open_folder
from ssl_core.folder import LAST
from ssl_core.train import load_checkpoint

CARD = BackboneCard(
    architecture="resnet18",
    channels=3,
    image_size=64,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    num_features=64,
    options={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]},
    recipe="toy",
)
THINGS = [[(0, (8, 8, 48, 40)), (1, (50, 48, 90, 92))], [(1, (10, 20, 60, 80))], [(0, (30, 30, 88, 70))]]


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "encoder" / "x.safetensors"
    path.parent.mkdir()
    save_backbone(path, make_card_encoder(CARD), CARD)
    return str(path)


@pytest.fixture
def own_voc(voc_folder):
    images = {
        f"{index}": [(label, ("red", "green")[label], box, index == 2) for label, box in things]
        for index, things in enumerate(THINGS)
    }
    return voc_folder({"train": images, "val": {"a": images["0"], "b": images["1"], "c": []}})


def options(source, **changes):
    few = {"iterations": 3, "batch_size": 2, "image_size": 64, "progress": False}
    return {"data": DataConfig(str(source), workers=0), **few, **changes}


def test_a_folder_of_ones_own_is_learned_and_its_picture_drawn(encoder, own_voc, capsys):
    result = evaluate_detection(encoder, protocol="voc0712_c4_24k", trials=2, **options(own_voc))
    work = own_voc.parent / "encoder"
    assert json.loads((work / "detection-voc0712_c4_24k.json").read_text()) == json.loads(json.dumps(result))
    assert result["changed"] == ["batch_size", "iterations", "long_side", "short_sides", "test_sides"]
    assert (result["num_train"], result["num_test"], result["names"]) == (3, 3, ["green", "red"])
    assert {"AP", "AP50", "AP75"} == result["trials"].keys()
    assert result["classes"].keys() == {"green", "red"}
    for seed in (0, 1):
        folder = work / f"detection-voc0712_c4_24k-seed{seed}"
        assert {path.name for path in folder.iterdir()} >= {"detections.json", "detections.png", "metrics.jsonl"}
        assert not (folder / "checkpoints").exists()
        names = {row["image_id"] for row in json.loads((folder / "detections.json").read_text())}
        assert names <= {"a.png", "b.png", "c.png"}
    said = capsys.readouterr().out
    assert "Faster R-CNN, C4" in said
    assert "4 objects of 2 classes to train on" in said
    assert "(2 trials, protocol voc0712_c4_24k, 3 images)" in said


def test_masks_are_scored_and_drawn_and_what_was_killed_goes_on(encoder, coco_folder, monkeypatch, tmp_path):
    folder = coco_folder({"train": THINGS, "val": [*THINGS[:2], []]}, ("red", "green"))

    def run(out):
        out.mkdir(exist_ok=True)
        return evaluate_detection(
            encoder, protocol="coco_c4_1x", out=str(out), **options(folder, iterations=4, batch_size=1, keep=True)
        )

    expected = run(tmp_path / "whole")
    assert expected.keys() >= {"AP", "AP50", "APs", "AR100", "mask_AP", "mask_AP50", "mask_APl"}
    kill_at_step(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.undo()
    (tmp_path / "killed" / "detection-coco_c4_1x-seed0" / "checkpoints" / "last.pt").stat()
    assert run(tmp_path / "killed") == expected
    states = [
        load_checkpoint(tmp_path / name / "detection-coco_c4_1x-seed0" / LAST)["method"] for name in ("whole", "killed")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(ValueError, match="holds what other settings have begun"):
        evaluate_detection(encoder, protocol="coco_c4_1x", out=str(tmp_path / "whole"), **options(folder))


def kill_at_step(monkeypatch, index):
    forward = Detector.forward

    def killed(self, views, step):
        if step.index == index:
            raise KeyboardInterrupt
        return forward(self, views, step)

    monkeypatch.setattr(Detector, "forward", killed)


def test_a_dry_run_measures_a_step_and_writes_nothing(encoder, own_voc, capsys):
    evaluate_detection(encoder, protocol="voc0712_c4_24k", dry_run=True, **options(own_voc, iterations=300))
    said = capsys.readouterr().out
    assert "cost: 600 images forward and backward, 200.0 epochs; 3 images tested" in said
    assert re.search(r"cpu: \d+\.\d\d s for an image of 64 x 64 in training, .* in all; about \d+\.\d GiB", said)
    assert [path.name for path in (own_voc.parent / "encoder").iterdir()] != []
    assert not list((own_voc.parent / "encoder").glob("detection*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": None}, "protocol voc0712_c4_24k needs data.root"),
        ({"data": DataConfig()}, "needs data.root, the folder that holds its set, or data.source"),
        ({"protocol": "voc"}, "no protocol 'voc'; choose one of voc0712_c4_24k"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"iterations": 0}, "iterations of a detection must be positive, not 0"),
        ({"protocol": "coco_c4_1x"}, "whose boxes have no shapes: choose a protocol without masks"),
        ({"encoder": "pixels"}, "pixels have nothing to train"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(encoder, own_voc, change, says):
    given = {"encoder": encoder, "protocol": "voc0712_c4_24k", **options(own_voc)} | change
    with pytest.raises(ValueError, match=says):
        evaluate_detection(**given)


def test_an_encoder_with_a_small_stem_is_refused_before_the_images_are_read(tmp_path):
    card = dataclasses.replace(CARD, stem="small", image_size=32)
    save_backbone(tmp_path / "x.safetensors", make_card_encoder(card), card)
    with pytest.raises(ValueError, match=r"pretrain with --encoder\.stem imagenet"):
        evaluate_detection(str(tmp_path / "x.safetensors"), protocol="voc0712_c4_24k", **options("nowhere"))


def test_the_help_names_every_protocol_and_the_options_of_images():
    assert [name for name in DETECTION_PROTOCOLS if name not in evaluate_detection.__doc__] == []
    text = cli._parser("eval detection", evaluate_detection).format_help()
    assert "--data.source" in text
    assert "--data.root" in text
    assert "--data.class_list" not in text


def made_detections(annotations, masks=False):
    """Every second object of each image, exactly."""
    chosen = np.arange(0, len(annotations.image), 2)
    runs = None
    if masks:
        sizes = [tuple(annotations.sizes[image].tolist()) for image in annotations.image[chosen]]
        rows = zip(chosen.tolist(), sizes, strict=True)
        runs = encode_masks(np.stack([annotations.segments.mask(index, size, size) for index, size in rows]))
    boxes = annotations.boxes[chosen].astype(np.float32)
    return Detections(annotations.image[chosen], annotations.labels[chosen], boxes, np.full(len(chosen), 0.875), runs)


def test_results_have_the_numbers_of_the_set_and_a_picture_shows_them(coco_folder, tmp_path):
    folder = coco_folder({"train": THINGS, "val": THINGS}, ("red", "green"))
    _, test = open_folder(folder, masks=True)
    detections = made_detections(test, masks=True)
    rows = json.loads(json.dumps(results(detections, test)))
    image, box = detections.image[0], detections.boxes[0]
    assert rows[0]["image_id"] == test.image_ids[image]
    assert rows[0]["category_id"] == test.category_ids[detections.labels[0]]
    assert rows[0]["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    assert rows[0]["segmentation"]["size"] == [96, 96]
    draw_detections(tmp_path / "x.png", test, detections, height=96)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (4 * 100, 100)
        pixels = np.asarray(picture)
    shown = [
        {tuple(color) for color in pixels[:96, left : left + 96].reshape(-1, 3).tolist()} for left in (0, 100, 200)
    ]
    white, of_class = (255, 255, 255), [tuple(bytes.fromhex(color[1:])) for color in _COLORS[:2]]
    for index, colors in enumerate(shown):
        found = detections.labels[detections.image == index].tolist()
        assert [color in colors for color in of_class] == [label in found for label in range(2)]
        # A detection covers its object's edges.
        assert (white in colors) == (len(found) < (test.image == index).sum())
    assert not pixels[:, 300:].any()


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_image_is_looked_at_once_whatever_the_number_of_processes(own_voc, monkeypatch, world_size):
    _, test = open_folder(own_voc)
    torch.manual_seed(0)
    detector = Detector(make_card_encoder(CARD), DetectorConfig("c4", score_threshold=0.2, detections=3), 2)
    found = []
    for rank in range(world_size):
        monkeypatch.setattr("ssl_core.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("ssl_core.distributed.world_size", lambda: world_size)
        monkeypatch.setattr("ssl_core.distributed.gather_objects", lambda parts: found.append(parts) or found)
        detections = detect(detector, test, sides=(64, 107), mean=CARD.mean, std=CARD.std, device="cpu")
    assert detections.image.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert (detections.boxes[:, 2:] <= 96).all()
    assert (detections.boxes[:, 2:] > detections.boxes[:, :2]).all()
    for image in range(3):
        assert (np.diff(detections.scores[detections.image == image]) <= 0).all()
