from dataclasses import replace

import numpy as np
import pytest

from ssl_core.data import DataConfig, channel_statistics, inspect, open_source


@pytest.mark.parametrize("workers", [0, 2])
def test_a_report_says_what_is_there(tmp_path, make, workers):
    make.write_images(tmp_path, [f"a/{index:03}.png" for index in range(70)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/gray.png").write_bytes(make.encoded(make.noise(20, 30)))
    (tmp_path / "b/deep.png").write_bytes(make.encoded(make.noise(4, 50, dtype=np.uint16)))
    (tmp_path / "b/empty.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(make.encoded(make.noise(8, 8, 3)))
    (tmp_path / "notes.txt").write_text("")
    config = DataConfig(source=str(tmp_path), workers=workers, broken_limit=0.1)
    report = inspect(config, progress=False)
    assert report.num_images == 73
    assert report.heights == (4, 8, 20)
    assert report.widths == (8, 8, 50)
    assert report.channels == {3: 71, 1: 2}
    assert report.read_channels == 3
    assert report.dtypes == {"uint8": 72, "uint16": 1}
    assert report.classes == {"a": 70, "b": 2}
    assert report.num_unlabelled == 1
    assert report.broken == (f"{tmp_path}/b/empty.png: zero bytes",)
    assert report.ignored == (f"{tmp_path}/notes.txt",)
    # 71 images of 3 * 64 bytes, one of 3 * 600, one of 3 * 200 * 2.
    assert report.decoded_bytes == 71 * 192 + 1800 + 1200
    mean, std = channel_statistics(open_source(config))
    assert report.mean == pytest.approx(mean)
    assert report.std == pytest.approx(std)


def test_a_report_reads_as_a_table(tmp_path, make):
    make.write_images(tmp_path, ["cat/1.png", "dog/2.png", "dog/3.png"])
    (tmp_path / "cat/empty.png").write_bytes(b"")
    lines = str(inspect(DataConfig(source=str(tmp_path), workers=0), progress=False)).splitlines()
    assert [line[:11].rstrip() for line in lines] == [
        *(
            "source",
            "images",
            "height",
            "width",
            "channels",
            "type",
            "mean",
            "std",
            "classes",
            "broken",
            "",
            "note",
            "note",
        ),
    ]
    assert "classes     2, of 1 to 2 images" in lines
    assert lines[-3] == f"            {tmp_path}/cat/empty.png: zero bytes"


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"std": (0.1, 0.0, 0.1)}, "channel 1 (from 0) is the same everywhere"),
        ({"mean": (0.4,) * 3, "std": (0.2,) * 3}, "--data.channels 1 reads it alone"),
        ({"heights": (16, 300, 4000), "sides": (16, 300, 400)}, "sides from 16 to 4000 px are far apart"),
        ({"num_images": 999}, "999 images are few"),
        ({"broken": ("1.png: zero bytes",) * 100}, "9.1 % of the images are broken"),
        ({"classes": {"cat": 900, "dog": 89}}, "classes are of very different sizes"),
        ({"classes": {"train": 500, "extra": 500}}, "train is read as a class, and named like a split"),
        ({"classes": {"test1": 300, "test2": 300, "dog": 400}}, "test1, test2 are read as classes"),
    ],
)
@pytest.mark.slow
def test_what_stands_out_is_remarked(change, remark):
    report = inspect(DataConfig(), progress=False)
    plain = replace(
        report,
        num_images=1000,
        heights=(200, 300, 400),
        widths=(200, 300, 400),
        sides=(200, 300, 400),
        read_channels=3,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.2),
        classes={"cat": 500, "dog": 500},
    )
    assert plain.remarks() == []
    (told,) = replace(plain, **change).remarks()
    assert remark in told


def test_a_report_of_a_named_set_gives_its_published_values():
    assert "published" not in str(inspect(DataConfig(), split="test", progress=False))


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of 1 images tried"):
        inspect(DataConfig(source=str(tmp_path), workers=0), progress=False)
    with pytest.raises(ValueError, match="1 of 1 images"):
        inspect(DataConfig(source=str(tmp_path), workers=0, channels=3), progress=False)


@pytest.mark.parametrize("channels", [None, 3, 4])
def test_alpha_is_a_channel_where_it_is_asked_for_and_named_where_not(tmp_path, make, channels):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(make.encoded(make.noise(8, 8, 4, seed=seed)))
    config = DataConfig(source=str(tmp_path), workers=0, channels=channels)
    report = inspect(config, progress=False)
    assert report.broken == ()
    assert report.hides_alpha == ("--data.channels 4 reads it" in str(report)) == (channels != 4)
    assert report.mean == pytest.approx(channel_statistics(open_source(config))[0])
    assert report.channels == {channels or 3: 3}


def test_gray_and_color_without_alpha_hide_none(tmp_path, make):
    make.write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "gray.png").write_bytes(make.encoded(make.noise(8, 8)))
    assert not inspect(DataConfig(source=str(tmp_path), workers=0), progress=False).hides_alpha


def test_the_axes_of_an_array_are_those_that_training_sees(tmp_path, make):
    np.save(tmp_path / "1.npy", make.noise(12, 20, 5))
    report = inspect(DataConfig(source=str(tmp_path), workers=0, channels=12), progress=False)
    assert (report.heights, report.widths, report.read_channels) == ((20,) * 3, (5,) * 3, 12)


def test_ignored_files_are_counted_by_kind(tmp_path, make):
    make.write_images(tmp_path, ["1.png"])
    for name in ("a.psd", "notes.txt"):
        (tmp_path / name).write_text("")
    report = str(inspect(DataConfig(source=str(tmp_path), workers=0), progress=False))
    assert "2 other files; 1 files of kinds that are not read: 1 .psd" in report
