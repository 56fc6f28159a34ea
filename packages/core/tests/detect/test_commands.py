import dataclasses
import itertools
import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask
from PIL import Image

from ssl_core import cli
from ssl_core.backbone import BackboneCard, make_card_encoder, save_backbone
from ssl_core.data import DataConfig
from ssl_core.data.pixels import BrokenImageError
from ssl_core.detect import commands
from ssl_core.detect.commands import evaluate_detection
from ssl_core.detect.metrics import Detections
from ssl_core.detect.model import Detector, DetectorConfig, Found
from ssl_core.detect.predict import _COLORS, detect, draw_detections, results
from ssl_core.detect.protocol import DETECTION_PROTOCOLS, detection_rate
from ssl_core.detect.segments import encode_masks
from ssl_core.detect.sets import open_folder
from ssl_core.folder import LAST
from ssl_core.train import Step, load_checkpoint

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
    assert len(set(result["trials"]["AP50"])) == 2
    assert np.mean(list(result["classes"].values())) == pytest.approx(result["AP50"])
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
        evaluate_detection(
            encoder, protocol="coco_c4_1x", out=str(tmp_path / "whole"), trials=2, seed=-1, **options(folder)
        )
    assert not (tmp_path / "whole" / "detection-coco_c4_1x-seed-1").exists()


def seen(pixels, sizes):
    """Finds the colored rectangles of an image that is normalized by the card; masks are the left thirds of boxes."""
    assert pixels.shape[2:] == (107, 213) == tuple(sizes[0].tolist())
    image = pixels[0] * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    assert image.min() == pytest.approx(0, abs=1e-5)
    boxes, labels = [], []
    for label, channel in enumerate(image[:2] > 0.5):
        rows, columns = channel.any(dim=1).nonzero().flatten(), channel.any(dim=0).nonzero().flatten()
        if len(rows):
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            labels.append(label)
    masks = torch.zeros(len(boxes), 27, 27)
    masks[:, :, :9] = 1
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return [Found(boxes, torch.tensor(labels, dtype=torch.int64), torch.full((len(boxes),), 0.75), masks)]


FLAT = [[(0, (8, 8, 48, 40)), (1, (60, 12, 90, 36))], [(1, (10, 4, 60, 44))], [(0, (30, 6, 88, 30))]]


@pytest.mark.parametrize(
    ("protocol", "precision"), [("coco_c4_1x", "bfloat16"), ("lvis_fpn_90k", "float32")], ids=["coco", "lvis"]
)
def test_a_protocol_reaches_batches_training_and_test(
    encoder, coco_folder, monkeypatch, tmp_path, caplog, protocol, precision
):
    given, trained, starts, statistics, autocast = [], [], [], [], set()

    class Batches(commands.DetectionBatches):
        def __init__(self, annotations, **arguments):
            super().__init__(annotations, **arguments)
            given.append(arguments)

    def predict(self, pixels, sizes):
        autocast.add(torch.is_autocast_enabled("cpu"))
        return seen(pixels, sizes)

    def remember(detector, *arguments, **named):
        trained.append((detector, *arguments, named))
        starts.append(detector.encoder.conv1.weight.clone())
        detector.encoder.conv1.weight.data.zero_()
        named["work"].mkdir(parents=True)

    def flattened(content):
        for image in content["images"]:
            image["height"] = 48

    monkeypatch.setattr(commands, "DetectionBatches", Batches)
    monkeypatch.setattr(commands, "train_labelled", remember)
    monkeypatch.setattr(commands, "precise_batch_norm_", lambda _, batches: statistics.append(list(batches)))
    monkeypatch.setattr(commands, "draw_detections", lambda *_: None)
    monkeypatch.setattr(commands.Folders, "remove", lambda *_: None)
    monkeypatch.setattr(Detector, "predict", predict)
    caplog.set_level(logging.INFO)
    things = {"train2017": [*FLAT, *FLAT[:2]], "val2017": [*FLAT, []]}
    frequency = "rf" if "lvis" in protocol else None
    folder = coco_folder(things, ("red", "green"), frequency=frequency, change=flattened)
    for path in folder.glob("*/*.png"):
        with Image.open(path) as image:
            image.crop((0, 0, 96, 48)).save(path)
    (folder / "train2017" / "4.png").unlink()
    monkeypatch.chdir(tmp_path)
    where = {"encoder": encoder, "out": str(tmp_path / "encoder")}
    if "lvis" in protocol:
        where = {"encoder": "random", "like": encoder}
    result = evaluate_detection(
        protocol=protocol,
        trials=2,
        seed=3,
        precision=precision,
        **where,
        data=DataConfig(root=str(folder), workers=0, broken_limit=0.25),
        **{name: value for name, value in options("", image_size=128).items() if name != "data"},
    )
    chosen = DETECTION_PROTOCOLS[protocol]
    expected = {
        "batch_size": 2,
        "mean": CARD.mean,
        "std": CARD.std,
        "short_sides": (128,),
        "max_size": 213,
        "masks": True,
        "repeat_threshold": chosen.repeat_threshold,
        "broken_limit": 0.25,
    }
    assert [each["seed"] for each in given] == [3, 4]
    assert [{name: each[name] for name in expected} for each in given] == [expected] * 2
    detectors, all_batches, optimizers, configs, named = zip(*trained, strict=True)
    weights = [detector.roi_heads.box_predictor.state_dict() for detector in detectors]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [chosen.lr] * 2
    assert {(config.steps, config.batch_size, config.precision) for config in configs} == {(3, 2, precision)}
    few = dataclasses.replace(chosen, iterations=3)
    rates = [named[0]["learning_rate"](Step(index, 3, 1)) for index in range(3)]
    assert rates == [detection_rate(few, Step(index, 3, 1)) for index in range(3)]
    assert [each["settings"]["seed"] for each in named] == [3, 4]
    assert named[0]["settings"]["train"] != named[0]["settings"]["test"]
    # Two batches an epoch: after three steps come the second of the second epoch, and those of the third.
    following = [*all_batches[0].epoch(1, 1), *all_batches[0].epoch(2)]
    assert len(statistics[0]) == 3
    for views, batch in zip(statistics[0], following, strict=True):
        assert all(map(torch.equal, views, batch.views))
    assert "Average Precision" not in caplog.text  # the evaluator's own tables, of each trial and process
    assert autocast == {precision == "bfloat16"}
    assert result["AP50"] == result["AP75"] == 1
    assert result["mask_AP50"] == 0
    assert ("APr" in result) == ("mask_APf" in result) == ("lvis" in protocol)
    assert result["num_train"] == 4
    assert torch.equal(*starts) == (encoder == where["encoder"])  # each trial begins anew, at random by its own seed
    out = tmp_path / ("runs/random-encoder" if "lvis" in protocol else "encoder")
    assert json.loads((out / f"detection-{protocol}.json").read_text())["AP50"] == 1
    rows = json.loads((out / f"detection-{protocol}-seed3/detections.json").read_text())
    # The first image of the file is that of the largest number.
    assert rows[-1]["image_id"] == 28
    assert rows[-1]["bbox"] == pytest.approx([60, 12, 30, 24], abs=0.5)
    shape = mask.decode(rows[-1]["segmentation"])
    assert shape[14:34, 62:68].all()
    assert shape.sum() == shape[11:37, 59:71].sum()


def kill_at_step(monkeypatch, index):
    forward = Detector.forward

    def killed(self, views, step):
        if step.index == index:
            raise KeyboardInterrupt
        return forward(self, views, step)

    monkeypatch.setattr(Detector, "forward", killed)


def test_a_dry_run_measures_a_step_and_writes_nothing(encoder, own_voc, capsys):
    data = DataConfig(own_voc.name, root=str(own_voc.parent), workers=0)
    evaluate_detection(encoder, protocol="voc0712_c4_24k", dry_run=True, **options("", data=data, iterations=300))
    said = capsys.readouterr().out
    assert "cost: 600 images forward and backward, 200.0 epochs; 3 images tested" in said
    assert re.search(r"cpu: \d+\.\d\d s for an image of 64 x 64 in training, .* in all; about \d+\.\d GiB", said)
    assert not list((own_voc.parent / "encoder").glob("detection*"))


def test_the_time_of_a_dry_run_is_that_of_all_images_of_one_process_and_trials(encoder, own_voc, monkeypatch, capsys):
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(commands, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    memory = iter([2**30, 3 * 2**30])
    monkeypatch.setattr(commands, "_memory_bytes", lambda _: next(memory))
    monkeypatch.setattr("ssl_core.distributed.world_size", lambda: 2)
    for file in (own_voc / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<height>96<", "<height>98<"))
    given = options(own_voc, iterations=300, batch_size=4, trials=3)
    evaluate_detection(encoder, protocol="voc0712_c4_24k", dry_run=True, **given)
    said = capsys.readouterr().out
    assert "cost: 3 times 1,200 images forward and backward, 400.0 epochs; 3 images tested" in said
    # 2 s a pass: 2 of 4 images in 300 steps, and for a third of the time in 200 batches of BatchNorm; 3 / 2 tests.
    total_s = 3 * (2 * (300 * 2 + 200 * 2 / 3) + 3 / 2 * 2)
    assert "2.00 s for an image of 64 x 65 in training, 2.00 s in a test" in said
    assert f"without reading it: {total_s / 60:.1f} min in all; about 5.0 GiB" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": None}, "protocol voc0712_c4_24k needs data.root"),
        ({"data": DataConfig()}, "needs data.root, the folder that holds its set, or data.source"),
        ({"data": DataConfig(root="s3://x")}, "data.root s3://x is an address, and detection reads a folder of this"),
        ({"data": DataConfig(source="s3://x")}, "data.source s3://x is an address, and detection reads a folder of"),
        ({"protocol": "voc"}, "no protocol 'voc'; choose one of voc0712_c4_24k"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"iterations": 0}, "iterations of a detection must be positive, not 0"),
        ({"protocol": "coco_c4_1x"}, "whose boxes have no shapes: choose a protocol without masks"),
        ({"encoder": "pixels"}, "pixels have nothing to train"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"batch_size": 3}, "batch_size 3 cannot be shared equally by 2 processes"),
        ({"precision": "tf32", "dry_run": True}, "precision tf32 is one of GPUs, and this is cpu"),
        ({"out": __file__}, "cannot write to the folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(encoder, own_voc, monkeypatch, change, says):
    if "batch_size" in change:
        monkeypatch.setattr("ssl_core.distributed.world_size", lambda: 2)
    given = {"encoder": encoder, "protocol": "voc0712_c4_24k", **options(own_voc)} | change
    with pytest.raises((ValueError, OSError), match=says):
        evaluate_detection(**given)


@pytest.mark.parametrize(
    ("part", "things", "says"),
    [
        ("train", [[], []], "instances_train.json has no image with an object, which could be trained on"),
        ("val", [[]], "instances_val.json has no object that is neither difficult nor a crowd"),
    ],
)
def test_sets_that_teach_or_judge_nothing_are_refused_before_any_work(encoder, coco_folder, part, things, says):
    folder = coco_folder({"train": THINGS, "val": THINGS} | {part: things}, ("red", "green"))
    with pytest.raises(ValueError, match=says):
        evaluate_detection(encoder, protocol="voc0712_c4_24k", dry_run=True, **options(folder))


def test_a_test_set_of_difficult_objects_is_refused_before_any_work(encoder, voc_folder):
    things = [[(0, "red", (8, 8, 48, 40), is_difficult)] for is_difficult in (False, True)]
    folder = voc_folder({"train": {"0": things[0]}, "val": {"a": things[1]}})
    with pytest.raises(ValueError, match="set val has no object that is neither difficult nor a crowd"):
        evaluate_detection(encoder, protocol="voc0712_c4_24k", dry_run=True, **options(folder))


def test_a_test_image_that_cannot_be_judged_by_is_found_before_training(encoder, own_voc):
    # The last, which has no object.
    file = own_voc / "Annotations" / "c.xml"
    file.write_text(file.read_text().replace("<width>96<", "<width>90<"))
    with pytest.raises(BrokenImageError, match=r"c.png: 96 x 96 pixels, but its boxes are of an image of 90 x 96"):
        evaluate_detection(encoder, protocol="voc0712_c4_24k", **options(own_voc))
    assert not list((own_voc.parent / "encoder").glob("detection*"))


def test_a_training_is_not_continued_on_other_objects(coco_folder, tmp_path):
    def digest(change=lambda content: None, folder=tmp_path / "set"):
        made = coco_folder({"train": THINGS, "val": THINGS}, ("red", "green"), change=change, folder=folder)
        return commands._digest(open_folder(made, masks=True)[1])

    def first(**fields):
        return lambda content: content["annotations"][0].update(fields)

    changed = [
        first(bbox=[9, 8, 40, 32]),
        first(category_id=10),
        first(iscrowd=1),
        first(area=1),
        first(segmentation=[[8, 8, 48, 8, 48, 40]]),
        first(segmentation={"size": [96, 96], "counts": [96 * 96]}),
        lambda content: content["categories"][0].update(name="crimson"),
        lambda content: content["images"][0].update(file_name="1.png"),
        lambda content: content["annotations"].pop(),
    ]
    digests = [digest(), *map(digest, changed)]
    assert len(set(digests)) == len(digests)
    assert digest(folder=tmp_path / "moved") == digests[0]


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
    """Every second object, exactly."""
    chosen = np.arange(1, len(annotations.image), 2)
    runs = None
    if masks:
        sizes = [tuple(annotations.sizes[image].tolist()) for image in annotations.image[chosen]]
        rows = zip(chosen.tolist(), sizes, strict=True)
        runs = encode_masks(np.stack([annotations.segments.mask(index, size, size) for index, size in rows]))
    boxes = annotations.boxes[chosen].astype(np.float32)
    return Detections(annotations.image[chosen], annotations.labels[chosen], boxes, np.full(len(chosen), 0.875), runs)


def test_results_have_the_numbers_of_the_set_and_a_picture_shows_them(coco_folder, tmp_path):
    def flattened(content):
        for image, width in zip(content["images"], (96, 96, 90), strict=True):
            image |= {"height": 48, "width": width}

    folder = coco_folder({"train": FLAT, "val": FLAT}, ("red", "green"), change=flattened)
    for path in (folder / "val").iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, 90 if path.stem == "2" else 96, 48)).save(path)
    _, test = open_folder(folder, masks=True)
    detections = made_detections(test, masks=True)
    rows = json.loads(json.dumps(results(detections, test)))
    image, box = detections.image[0], detections.boxes[0]
    assert rows[0]["image_id"] == test.image_ids[image]
    assert rows[0]["category_id"] == test.category_ids[detections.labels[0]]
    assert rows[0]["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    assert rows[0]["segmentation"]["size"] == [48, 96]
    draw_detections(tmp_path / "x.png", test, detections, height=48)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (4 * 100, 52)
        pixels = np.asarray(picture)
    shown = [
        {tuple(color) for color in pixels[:48, left : left + 96].reshape(-1, 3).tolist()} for left in (0, 100, 200)
    ]
    white, of_class = (255, 255, 255), [tuple(bytes.fromhex(color[1:])) for color in _COLORS[:2]]
    for index, colors in enumerate(shown):
        found = detections.labels[detections.image == index].tolist()
        assert [color in colors for color in of_class] == [label in found for label in range(2)]
        for box, label in zip(detections.boxes[detections.image == index].astype(int), found, strict=True):
            x1, y1, x2, y2 = box
            inside = pixels[y1 + 3 : y2 - 3, 100 * index + x1 + 3 : 100 * index + x2 - 3]
            mixed = (np.eye(3)[label] * 255 + of_class[label]) / 2  # half the object, half its mask
            assert inside[-1, -1] == pytest.approx(mixed, abs=1)
            # Name and score: dark on the color of the class.
            assert (inside == of_class[label]).all(axis=2).any()
            assert (inside < 30).all(axis=2).any()
        # A detection covers its object's edges.
        assert (white in colors) == (len(found) < (test.image == index).sum())
    assert not pixels[:, 300:].any()


def test_results_of_a_set_without_numbers_have_its_names(own_voc):
    _, test = open_folder(own_voc)
    found = Detections(np.array([1]), np.array([0]), np.array([[4.126, 16, 80, 80]]), np.array([0.123456]))
    row = {"image_id": "b.png", "category_id": "green", "bbox": [4.13, 16, 75.87, 64], "score": 0.12346}
    assert results(found, test) == [row]


def test_a_picture_has_eight_images_from_the_first_to_the_last_and_no_weak_detections(voc_folder, tmp_path):
    images = {str(index): [(index % 2, ("red", "green")[index % 2], (8, 16, 40, 80), False)] for index in range(20)}
    train, _ = open_folder(voc_folder({"train": images, "val": images}))
    boxes = np.array([[48, 16, 80, 80], [48, 16, 80, 80]], np.float32)
    weak = Detections(np.array([0, 19]), np.array([0, 0]), boxes, np.array([0.49, 0.5], np.float32))
    draw_detections(tmp_path / "x.png", train, weak, height=48)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (4 * 52, 2 * 52)
        cells = np.asarray(picture).reshape(2, 52, 4, 52, 3).swapaxes(1, 2).reshape(8, 52, 52, 3)
    # Images 0, 2, 5, 8, 10, 13, 16 and 19.
    assert [cell[24, 12].argmax() for cell in cells] == [0, 0, 1, 0, 0, 1, 0, 1]
    assert all((cell[8, 4:20] == 255).all() for cell in cells)
    color = tuple(bytes.fromhex(_COLORS[0][1:]))
    assert [any((cell[20:40, 24] == color).all(axis=1)) for cell in cells] == [False] * 7 + [True]


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
