"""Each set in the layout in which it is distributed, made of a few images."""

import json

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ssl_core.backbone import BackboneCard, save_card
from ssl_core.cli import main
from ssl_core.data import (
    TRANSFER_SETS,
    DataConfig,
    inspect,
    multi_labels,
    official_validation,
    open_encoded,
    open_source,
)
from ssl_core.data.config import NAMES
from ssl_core.data.transfer_sets import count_remark
from ssl_core.data.voc import VOC_CLASSES
from ssl_core.evaluate import evaluate_knn


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def write_lines(root, name, *lines):
    write(root, name, "".join(f"{line}\n" for line in lines))


def food101(root, form):
    lists = {"train": ["pie/1", "pie/2", "bread/3"], "test": ["pie/4", "bread/5"]}
    for part, names in lists.items():
        if form == "json":
            by_class = {each: [name for name in names if name.startswith(each)] for each in ("pie", "bread")}
            write(root, f"food-101/meta/{part}.json", json.dumps(by_class))
        else:
            write_lines(root, f"food-101/meta/{part}.txt", *names)
    images = [f"food-101/images/{name}.jpg" for names in lists.values() for name in names]
    return images, ("bread", "pie"), [1, 1, 0], [], [1, 0]


def birdsnap(root, form):
    species = ["id\tcommon\tscientific\tdir", "1\tBlue Jay\tC. cristata\tBlue_Jay", "2\tAnna's Owl\tO. a\tAnnas_Owl"]
    write_lines(root, "birdsnap/species.txt", *species)
    paths = ["Blue_Jay/1.jpg", "Annas_Owl/2.jpg", "Blue_Jay/3.jpg", "Annas_Owl/4.jpg"]
    rows = [f"http://x/{path}\t0f\t{path}\t{1 + path.startswith('A')}\t3" for path in paths]
    write_lines(root, "birdsnap/images.txt", "url\tmd5\tpath\tspecies_id\tbb_x1", *rows)
    write_lines(root, "birdsnap/test_images.txt", "path", "Annas_Owl/4.jpg")
    folder = "birdsnap/images" if form == "images" else "birdsnap"
    return [f"{folder}/{path}" for path in paths], ("Blue Jay", "Anna's Owl"), [0, 1, 0], [], [1]


def sun397(root, form):
    write_lines(root, "SUN397/ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor", "/w/wave")
    train = ["/a/abbey/sun_a.jpg", "/w/wave/sun_b.jpg", "/a/apartment_building/outdoor/sun_c.jpg"]
    test = ["/a/apartment_building/outdoor/sun_d.jpg", "/w/wave/sun_e.jpg"]
    write_lines(root, "SUN397/Training_01.txt", *train)
    write_lines(root, "SUN397/Testing_01.txt", *test)
    return (
        [f"SUN397{each}" for each in train + test],
        ("abbey", "apartment_building/outdoor", "wave"),
        [0, 2, 1],
        [],
        [1, 2],
    )


def cars(root, form):
    def annotations(*rows):
        return {"annotations": np.array(list(rows), dtype=[("bbox_x1", "u1"), ("class", "u1"), ("fname", object)])}

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Audi S4"], dtype=object)})
    savemat(folder / "devkit/cars_train_annos.mat", annotations((3, 2, "1.jpg"), (3, 1, "2.jpg"), (3, 2, "3.jpg")))
    test = annotations((3, 1, "1.jpg"), (3, 2, "2.jpg"))
    savemat(folder / ("devkit" if form == "devkit" else "") / "cars_test_annos_withlabels.mat", test)
    images = [f"cars_{name}.jpg" for name in ("train/1", "train/2", "train/3", "test/1", "test/2")]
    return [f"stanford_cars/{each}" for each in images], ("AM General Hummer", "Audi S4"), [1, 0, 1], [], [0, 1]


def aircraft(root, form):
    data = "fgvc-aircraft-2013b/data"
    write_lines(root, f"{data}/variants.txt", "707-320", "An-12", "Cessna 172")
    write_lines(root, f"{data}/images_variant_train.txt", "11 Cessna 172", "12 707-320", "13 An-12")
    write_lines(root, f"{data}/images_variant_val.txt", "14 An-12", "15 707-320")
    write_lines(root, f"{data}/images_variant_test.txt", "16 Cessna 172")
    images = [f"{data}/images/{number}.jpg" for number in range(11, 17)]
    return images, ("707-320", "An-12", "Cessna 172"), [2, 0, 1], [1, 0], [2]


def voc2007(root, form):
    parts = {"train": [3, 5], "val": [6, 7, 9], "test": [1, 2]}
    for part, numbers in parts.items():
        for name in VOC_CLASSES:
            # A dog in every odd image, all of them difficult in images that 3 divides.
            values = [-1 if name != "dog" or number % 2 == 0 else 0 if number % 3 == 0 else 1 for number in numbers]
            lines = [f"{number:06d} {value:2d}" for number, value in zip(numbers, values, strict=True)]
            write_lines(root, f"VOCdevkit/VOC2007/ImageSets/Main/{name}_{part}.txt", *lines)
    images = [f"VOCdevkit/VOC2007/JPEGImages/{number:06d}.jpg" for part in parts.values() for number in part]
    return images, None, [-1] * 2, [-1] * 3, [-1] * 2


def dtd(root, form):
    folder = "dtd/dtd" if form == "dtd/dtd" else "dtd"
    lists = {
        "train": ["dotted/1.jpg", "banded/2.jpg"],
        "val": ["banded/3.jpg"],
        "test": ["dotted/4.jpg", "banded/5.jpg"],
    }
    for part, names in lists.items():
        write_lines(root, f"{folder}/labels/{part}1.txt", *names)
    images = [f"{folder}/images/{name}" for names in lists.values() for name in names]
    return images, ("banded", "dotted"), [1, 0], [0], [1, 0]


def pets(root, form):
    write_lines(root, "oxford-iiit-pet/annotations/trainval.txt", "Abyssinian_1 1 1 1", "yorkshire_terrier_2 2 2 1")
    write_lines(root, "oxford-iiit-pet/annotations/test.txt", "yorkshire_terrier_3 2 2 1", "Abyssinian_4 1 1 1")
    names = ["Abyssinian_1", "yorkshire_terrier_2", "yorkshire_terrier_3", "Abyssinian_4"]
    images = [f"oxford-iiit-pet/images/{name}.jpg" for name in names]
    return images, ("Abyssinian", "yorkshire_terrier"), [0, 1], [], [1, 0]


def caltech101(root, form):
    folder = f"{form}/101_ObjectCategories"
    sizes = {"BACKGROUND_Google": 32, "ant": 31}
    images = [f"{folder}/{name}/image_{number:04d}.jpg" for name, size in sizes.items() for number in range(size)]
    return images, tuple(sizes), [0] * 30 + [1] * 30, [], [0, 0, 1]


def flowers102(root, form):
    (root / "flowers-102").mkdir()
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array([2, 1, 3, 2, 1, 10], np.uint8)})
    splits = {"trnid": [6, 1, 2, 3], "valid": [4], "tstid": [5]}
    savemat(root / "flowers-102/setid.mat", {name: np.array(ids, np.uint16) for name, ids in splits.items()})
    images = [f"flowers-102/jpg/image_{number:05d}.jpg" for ids in splits.values() for number in ids]
    return images, ("1", "2", "3", "10"), [3, 1, 0, 2], [1], [0]


FORMS = [
    *((food101, "json"), (food101, "txt")),
    *((birdsnap, "images"), (birdsnap, "beside the lists")),
    *((sun397, ""), (cars, "beside devkit"), (cars, "devkit"), (aircraft, ""), (voc2007, "")),
    *((dtd, "dtd"), (dtd, "dtd/dtd"), (pets, ""), (caltech101, "caltech101"), (caltech101, "caltech-101")),
    (flowers102, ""),
]


def tree(root, make, write_lists, form):
    """A set's files, and what is expected of it: the images, the classes, and the labels of each split."""
    images, *expected = write_lists(root, form)
    make.write_images(root, images)
    return images, *expected


def config(name, root, **options):
    return DataConfig(source=name, root=str(root), workers=0, **options)


def labels(source):
    return [source.label(index) for index in range(len(source))]


def paths(source, root):
    return [source.identifier(index).removeprefix(f"{root}/") for index in range(len(source))]


@pytest.mark.parametrize(("write_lists", "form"), FORMS, ids=lambda each: getattr(each, "__name__", each))
def test_a_set_is_read_as_it_is_distributed(write_lists, form, tmp_path, make):
    images, classes, train, validation, test = tree(tmp_path, make, write_lists, form)
    data = config(write_lists.__name__, tmp_path)
    opened = {split: open_source(data, split=split) for split in ("train", "labelled", "test")}
    assert {split: source.classes for split, source in opened.items()} == dict.fromkeys(opened, classes)
    assert labels(opened["train"]) == labels(opened["labelled"]) == train + validation
    assert labels(opened["test"]) == test
    if write_lists is not caltech101:
        assert paths(opened["labelled"], tmp_path) + paths(opened["test"], tmp_path) == images
    assert sorted(paths(opened["labelled"], tmp_path) + paths(opened["test"], tmp_path)) == sorted(images)
    held_out = official_validation(data, opened["labelled"])
    if validation:
        assert held_out.tolist() == list(range(len(train), len(train + validation)))
    else:
        assert held_out is None


def test_every_named_set_has_a_tree_here():
    made = {write_lists.__name__ for write_lists, _ in FORMS}
    assert made | {"cifar10", "cifar100"} == set(TRANSFER_SETS)
    assert made < set(NAMES)


@pytest.fixture
def pixels(tmp_path_factory):
    """What ``pixels`` takes its input from: a card."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "card.safetensors").touch()
    save_card(folder / "card.json", BackboneCard("resnet18", 3, 8, (0.5,) * 3, (0.2,) * 3, 8))
    return str(folder / "card.safetensors")


@pytest.mark.parametrize("write_lists", dict.fromkeys(each for each, _ in FORMS), ids=lambda each: each.__name__)
def test_commands_take_a_set_by_name(write_lists, tmp_path, make, pixels, capsys):
    form = next(form for each, form in FORMS if each is write_lists)
    _, _, train, validation, test = tree(tmp_path, make, write_lists, form)
    name = write_lists.__name__
    options = ["--data.root", str(tmp_path), "--data.workers=0"]
    main(["data", name, *options])
    printed = capsys.readouterr().out
    assert f"source      {name} (train)\nimages      {len(train + validation)}," in printed
    published = TRANSFER_SETS[name].train + TRANSFER_SETS[name].validation
    assert (
        f"note        {name}: {len(train + validation)} of {published:,} training images" in printed or published == 60
    )
    evaluate = ["pixels", "--like", pixels, "--data.source", name, *options, "--device=cpu"]
    if name == "voc2007":
        assert "an image may show several of 20 classes" in printed
        for by in ("knn", "linear", "similarity", "tsne"):
            with pytest.raises(SystemExit):
                main(["eval", by, *evaluate])
            refusal = "an image may show several of 20 classes, which ssl-core eval voc07 tells apart; here each image"
            assert f"voc2007: {refusal} needs one class" in capsys.readouterr().err
    else:
        main(["eval", "knn", *evaluate, "--k=1"])
        assert f"(k=1, T=0.1, {len(test)} images" in capsys.readouterr().out


def test_a_count_that_is_not_the_published_one_is_said_and_saved(tmp_path, make, pixels, caplog):
    tree(tmp_path, make, pets, "")
    result = evaluate_knn("pixels", like=pixels, data=config("pets", tmp_path), k=1, progress=False)
    remarks = ["pets: 2 of 3,680 training images", "pets: 2 of 3,669 test images"]
    assert caplog.messages == remarks
    assert result["differs"] == remarks
    # A user's own images are not compared with the set's.
    own = config("pets", tmp_path, test_source="oxford-iiit-pet/images")
    assert len(open_source(own, split="test")) == 4
    assert "pets: 4 of 3,669 test images" not in caplog.messages
    assert count_remark("pets", "train", 3680) is None
    assert count_remark("dtd", "train", 1880 * 2) is None


def test_a_class_list_names_a_class_with_blanks_on_each_line(tmp_path, make):
    tree(tmp_path, make, cars, "devkit")
    write_lines(tmp_path, "classes.txt", "Audi S4", "AM General Hummer", "")
    opened = open_encoded(config("cars", tmp_path, class_list=str(tmp_path / "classes.txt")))
    assert (opened.classes, labels(opened)) == (("Audi S4", "AM General Hummer"), [0, 1, 0])


def test_values_of_voc_are_those_of_its_lists(tmp_path, make):
    tree(tmp_path, make, voc2007, "")
    data = config("voc2007", tmp_path)
    dog = VOC_CLASSES.index("dog")
    labelled, test = (multi_labels(data, open_source(data, split=split)) for split in ("labelled", "test"))
    assert labelled[:, dog].tolist() == [0, 1, -1, 1, 0]
    assert test[:, dog].tolist() == [1, -1]
    assert (labelled.shape, labelled.sum().item()) == ((5, 20), 2 - 1 - 19 * 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000003  2", r"line 1 of .*/dog_train.txt, '000003  2', is not an image and 1, 0 or -1"),
        ("000003", r"line 1 of .*/dog_train.txt, '000003', is not an image"),
        ("000005  1", r"line 2 of .*/dog_train.txt, '000005  1', is not an image and 1, 0 or -1, once for each image"),
        ("000004  1", r"image 000003 is in .*/aeroplane_train.txt but not in dog_train.txt"),
    ],
)
def test_a_list_of_voc_that_does_not_agree_with_the_others_is_refused(line, message, tmp_path, make):
    tree(tmp_path, make, voc2007, "")
    write_lines(tmp_path, "VOCdevkit/VOC2007/ImageSets/Main/dog_train.txt", line, "000005  1")
    with pytest.raises(ValueError, match=message):
        open_encoded(config("voc2007", tmp_path))


@pytest.mark.parametrize(
    ("write_lists", "file", "remedy"),
    [
        (sun397, "SUN397/Training_01.txt", "SUN397's splits come in a separate archive; put it beside ClassName.txt"),
        (dtd, "dtd/labels/val1.txt", "the folder labels of dtd-r1.0.1.tar.gz has it"),
        (aircraft, "fgvc-aircraft-2013b/data/images_variant_test.txt", "the archive fgvc-aircraft-2013b.tar.gz has it"),
        (flowers102, "flowers-102/setid.mat", "setid.mat and imagelabels.mat are files of their own"),
        (cars, "stanford_cars/devkit/cars_test_annos_withlabels.mat", "the labels of the test images come in a file"),
        (pets, "oxford-iiit-pet/annotations/test.txt", "annotations.tar.gz has it"),
        (food101, "food-101/meta/test.txt", "food-101/meta of the archive has it"),
        (birdsnap, "birdsnap/test_images.txt", "birdsnap.tgz has species.txt, images.txt and test_images.txt"),
        (voc2007, "VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt", "ImageSets/Main of VOC2007 has a list"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_list_that_is_not_there_is_named_with_where_it_comes_from(write_lists, file, remedy, tmp_path, make):
    forms = {food101: "txt", cars: "devkit"}
    tree(tmp_path, make, write_lists, forms.get(write_lists, ""))
    (tmp_path / file).unlink()
    for split in ("train", "test"):
        with pytest.raises(FileNotFoundError, match=f"{file} is not there: {remedy}"):
            open_encoded(config(write_lists.__name__, tmp_path), split)


@pytest.mark.parametrize(("name", "folder"), [("pets", "oxford-iiit-pet"), ("caltech101", "caltech101")])
def test_the_folder_above_is_named_to_who_gives_a_sets_own(name, folder, tmp_path):
    (tmp_path / folder).mkdir()
    with pytest.raises(FileNotFoundError, match=f"; data.root is the folder above {folder}: give {tmp_path}$"):
        open_encoded(config(name, tmp_path / folder))
    with pytest.raises(FileNotFoundError, match="is not there") as refused:
        open_encoded(config(name, tmp_path))
    assert "the folder above" not in str(refused.value)


def test_the_folder_of_caltech_is_named_where_it_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"caltech101/101_ObjectCategories is not there: unpack 101_Object"):
        open_encoded(config("caltech101", tmp_path))


def test_images_that_are_not_there_are_counted_and_left_out_up_to_the_limit(tmp_path, make, caplog, pixels):
    images, *_ = tree(tmp_path, make, birdsnap, "images")
    (tmp_path / images[0]).unlink()
    missing = f"1 of 3 images that its lists name are not there: {tmp_path}/birdsnap/images/Blue_Jay/1.jpg"
    with pytest.raises(ValueError, match=f"birdsnap: {missing}; data.broken_limit 0.01 allows fewer"):
        open_encoded(config("birdsnap", tmp_path))
    data = config("birdsnap", tmp_path, broken_limit=0.5)
    result = evaluate_knn("pixels", like=pixels, data=data, k=1, progress=False)
    assert caplog.messages[0] == f"birdsnap: 2 of 47,386 training images; {missing}"
    assert result["differs"][0] == "birdsnap: 2 of 47,386 training images"
    assert (result["num_train"], result["num_test"]) == (2, 1)
    assert missing in str(inspect(data, progress=False))


def test_of_many_images_that_are_not_there_five_are_named(tmp_path, make):
    images, *_ = tree(tmp_path, make, flowers102, "")
    for image in images:
        (tmp_path / image).unlink()
    with pytest.raises(ValueError, match=r"5 of 5 images .*: (\S+, ){4}\S+; data.broken_limit 1 allows fewer: fetch"):
        open_encoded(config("flowers102", tmp_path, broken_limit=1.0))


def aircraft_variant(root):
    write_lines(root, "fgvc-aircraft-2013b/data/images_variant_val.txt", "14 An-12", "15 Concorde")


def sun_class(root):
    write_lines(root, "SUN397/Testing_01.txt", "/z/zoo/sun_d.jpg")


def car_class(root):
    annotations = np.array([("1.jpg", 3)], dtype=[("fname", object), ("class", "u1")])
    savemat(root / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": annotations})


def flower_image(root):
    splits = {"trnid": [6, 9], "valid": [4], "tstid": [5]}
    savemat(root / "flowers-102/setid.mat", splits)


def flower_fields(root):
    savemat(root / "flowers-102/setid.mat", {"trnid": [6, 1]})


def flower_file(root):
    write(root, "flowers-102/setid.mat", "<!DOCTYPE html><title>Not found</title>" * 9)


def car_fields(root):
    savemat(root / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": np.zeros(2)})


def bird_species(root):
    write_lines(root, "birdsnap/species.txt", "id\tcommon", "1\tBlue Jay")


def bird_columns(root):
    write_lines(root, "birdsnap/test_images.txt", "Annas_Owl/4.jpg")


def pet_line(root):
    write_lines(root, "oxford-iiit-pet/annotations/test.txt", "Abyssinian_4 cat")


def pet_class(root):
    write_lines(root, "oxford-iiit-pet/annotations/test.txt", "Abyssinian_4 1 1 1", "pug_5 3 2 1")


def dtd_class(root):
    write_lines(root, "dtd/labels/val1.txt", "dotted/1.jpg", "woven/3.jpg")


def empty_list(root):
    write_lines(root, "dtd/labels/test1.txt")


def food_json(root):
    write(root, "food-101/meta/test.json", '{"pie": ["pie/1')


@pytest.mark.parametrize(
    ("write_lists", "damage", "message"),
    [
        (
            aircraft,
            aircraft_variant,
            "images_variant_val.txt names Concorde, which is none of 3 from 707-320 to Cessna",
        ),
        (sun397, sun_class, "Testing_01.txt names zoo, which is none of 3 from abbey to wave"),
        (cars, car_class, "cars_train_annos.mat names 3, which is none of 2 from 1 to 2"),
        (cars, car_fields, "annotations of .*cars_train_annos.mat have no fields fname and class"),
        (flowers102, flower_image, "setid.mat names 9, which is none of 6 from 1 to 6"),
        (flowers102, flower_fields, "setid.mat has no readable field tstid .*; fetch it anew"),
        (flowers102, flower_file, r"setid.mat has no readable field .* \(Unknown mat file type"),
        (birdsnap, bird_species, "images.txt names 2, which is none of 1 from 1 to 1"),
        (birdsnap, bird_columns, "test_images.txt is no table with tabs of the columns path"),
        (pets, pet_line, "test.txt: 'Abyssinian_4 cat' is no image and the number of a class"),
        (pets, pet_class, r"validation or test images have classes that training images lack: \['pug'\]"),
        (dtd, dtd_class, r"dtd: validation or test images have classes that training images lack: \['woven'\]"),
        (dtd, empty_list, "dtd: its lists in .* name no test images"),
        (food101, food_json, "test.json is no JSON"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_lists_that_cannot_be_understood_are_refused(write_lists, damage, message, tmp_path, make):
    form = next(form for each, form in FORMS if each is write_lists)
    tree(tmp_path, make, write_lists, form)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_encoded(config(write_lists.__name__, tmp_path), "test")


def test_classes_of_a_set_are_chosen_by_a_list(tmp_path, make):
    tree(tmp_path, make, caltech101, "caltech101")
    whole = open_source(config("caltech101", tmp_path), split="test")
    write_lines(tmp_path, "classes.txt", "ant")
    chosen = config("caltech101", tmp_path, class_list=str(tmp_path / "classes.txt"))
    # Its images are drawn as before; of one class there is nothing to tell apart.
    assert paths(open_source(chosen, split="test"), tmp_path) == paths(whole, tmp_path)[2:]
    write_lines(tmp_path, "classes.txt", "ant", "BACKGROUND_Google")
    assert labels(open_source(chosen, split="test")) == [1, 1, 0]
    write_lines(tmp_path, "classes.txt", "ant", "bee")
    with pytest.raises(ValueError, match=r"data.class_list names 1 classes that caltech101 lacks: \['bee'\]"):
        open_source(chosen)


def test_the_draw_of_a_class_of_caltech_is_random_and_its_own(tmp_path, make):
    tree(tmp_path, make, caltech101, "caltech101")
    test = paths(open_encoded(config("caltech101", tmp_path), "test"), tmp_path)
    assert [name[-8:-4] for name in test] != ["0030", "0031", "0030"]
    write_lines(tmp_path, "classes.txt", "ant")
    make.write_images(tmp_path, ["caltech101/101_ObjectCategories/aardvark/image_0001.jpg"])
    again = paths(open_encoded(config("caltech101", tmp_path), "test"), tmp_path)
    assert again == test


def test_broken_images_do_not_shift_what_is_kept_for_validation(tmp_path, make):
    images, *_ = tree(tmp_path, make, aircraft, "")
    (tmp_path / images[3]).write_bytes(b"no image")
    data = config("aircraft", tmp_path, broken_limit=0.5)
    labelled = open_source(data, split="labelled")
    assert len(labelled) == 4
    assert official_validation(data, labelled).tolist() == [3]
    lazy = open_source(config("aircraft", tmp_path, broken_limit=0.5, memory_gib=0.0), split="labelled")
    assert official_validation(data, lazy).tolist() == [3, 4]


def test_a_folder_named_like_a_set_is_read_by_its_path(tmp_path, make, monkeypatch):
    make.write_images(tmp_path, ["cars/a/1.png", "cars/b/2.png"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'cars' needs data.root, .*; the folder of that name here is \./cars"):
        open_source(DataConfig("cars"))
    assert torch.equal(open_source(DataConfig("./cars", workers=0)).labels, torch.tensor([0, 1]))
