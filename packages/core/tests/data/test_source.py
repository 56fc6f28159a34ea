import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.data import BrokenImageError, DataConfig, LazyImages, MemoryImages, hold_in_memory, open_source
from ssl_core.data.source import pack
from ssl_core.views import unpack_images


class Encoded:
    """Ten images of one value each, of which some are broken."""

    name, classes = "encoded", ("even", "odd")

    def __init__(self, broken=(), length=10):
        self.broken_indices, self.length = broken, length

    def __len__(self):
        return self.length

    def image(self, index):
        if index in self.broken_indices:
            raise BrokenImageError(f"{self.identifier(index)}: torn")
        return torch.full((1, 2, 2), index % 256, dtype=torch.uint8)

    def label(self, index):
        return index % 2

    def identifier(self, index):
        return f"file {index}"


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_memory_are_those_of_the_source(workers):
    held = hold_in_memory(Encoded(length=600), workers=workers)
    assert held.images.shape == (600, 1, 2, 2)
    assert held.images[:, 0, 0, 0].tolist() == [index % 256 for index in range(600)]
    assert [held.label(index) for index in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_counted_and_listed_once(caplog, workers):
    held = hold_in_memory(Encoded(broken=(3, 299), length=300), workers=workers)
    assert len(held) == 298
    assert held.identifier(3) == "file 4"
    assert held.label(3) == 0
    assert held.broken == ("file 3: torn", "file 299: torn")
    assert [record.getMessage() for record in caplog.records] == [
        "encoded: left out 2 of 300 images: \n  file 3: torn\n  file 299: torn"
    ]


def test_too_many_broken_images_are_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"(?s)2 of 10 images of encoded cannot be read.*file 3.*data\.broken_limit"):
        hold_in_memory(Encoded(broken=(3, 5)), broken_limit=0.1)
    assert len(hold_in_memory(Encoded(broken=(3, 5)), broken_limit=0.2)) == 8


def test_nothing_but_broken_images_is_an_error_whatever_the_limit():
    with pytest.raises(ValueError, match="10 of 10 images"):
        hold_in_memory(Encoded(broken=range(10)), broken_limit=1.0)
    with pytest.raises(ValueError, match="10 of 10 images"):
        LazyImages(Encoded(broken=range(10)), broken_limit=1.0).image(0)


def test_a_long_list_of_broken_images_is_cut():
    with pytest.raises(ValueError, match=r"(?s)file 19: torn\n  \.\.\. and 30 more"):
        hold_in_memory(Encoded(broken=range(50), length=60), broken_limit=0.0)


def test_images_of_different_shapes_or_types_are_a_list():
    class Mixed(Encoded):
        def image(self, index):
            dtype = torch.uint16 if index == 2 else torch.uint8
            return torch.zeros(3, 4, 5 + (index == 1), dtype=dtype)

    held = hold_in_memory(Mixed(length=3))
    assert isinstance(held.images, list)
    assert [(tuple(held.image(i).shape), held.image(i).dtype) for i in range(3)] == [
        ((3, 4, 5), torch.uint8),
        ((3, 4, 6), torch.uint8),
        ((3, 4, 5), torch.uint16),
    ]


def test_a_broken_image_is_replaced_by_the_next_that_can_be_read_and_reported_once(caplog):
    source = LazyImages(Encoded(broken=(3, 4, 9)), broken_limit=0.3)
    for _ in range(2):
        assert source.image(3).unique().item() == 5
        assert source.image(9).unique().item() == 0
    assert source.label(4) == 1
    assert source.identifier(3) == "file 5"
    assert source.broken == ("file 3", "file 4", "file 9")
    assert len(caplog.records) == 3


def test_a_broken_image_found_by_a_worker_is_known_to_all(tmp_path):
    from ssl_core.data.workers import worker_map

    source = LazyImages(Encoded(broken=(3,)), broken_limit=0.3)
    values = [image.unique().item() for image in worker_map(source.image, list(range(10)), 2)]
    assert values == [0, 1, 2, 4, 4, 5, 6, 7, 8, 9]
    assert source.broken == ("file 3",)


def test_more_broken_images_than_allowed_stop_a_lazy_source():
    source = LazyImages(Encoded(broken=(3, 4)), broken_limit=0.1)
    with pytest.raises(ValueError, match=r"2 of 10 images.*data\.broken_limit"):
        source.image(3)


def broken_folder(folder, make):
    """Every kind of bad file that people have, among 20 good ones."""
    make.write_images(folder, [f"good/{index:02}.png" for index in range(20)])
    whole = make.encoded(make.noise(40, 40, 3), "JPEG")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_text("<html>404</html>")
    (folder / "large.jpg").write_bytes(make.encoded(Image.new("RGB", (3000, 3000)), "JPEG"))
    (folder / "gray.png").write_bytes(make.encoded(make.noise(8, 9)))
    (folder / "rgba.png").write_bytes(make.encoded(make.noise(8, 9, 4)))
    (folder / "palette.png").write_bytes(make.encoded(Image.fromarray(make.noise(8, 9, 3)).convert("P")))
    (folder / "deep.png").write_bytes(make.encoded(make.noise(8, 9, dtype=np.uint16)))


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["in memory", "lazy"])
def test_a_folder_with_files_of_every_kind_is_read(tmp_path, make, memory_gib):
    broken_folder(tmp_path, make)
    config = DataConfig(source=str(tmp_path), workers=0, memory_gib=memory_gib, broken_limit=0.2)
    source = open_source(config)
    assert isinstance(source, MemoryImages if memory_gib else LazyImages)
    assert len(source) == (25 if memory_gib else 28)
    images = {source.identifier(i).rpartition("/")[2]: source.image(i) for i in range(len(source))}
    assert all(len(image) == 3 for image in images.values())
    assert images["large.jpg"].shape == (3, 3000, 3000)
    assert images["deep.png"].dtype == torch.uint16
    assert {line.partition(": ")[0].rpartition("/")[2] for line in source.broken} == {
        "empty.jpg",
        "truncated.jpg",
        "page.png",
    }


def test_the_same_folder_is_an_error_under_the_default_limit(tmp_path, make):
    broken_folder(tmp_path, make)
    with pytest.raises(ValueError, match=r"(?s)3 of 28 images.*empty\.jpg: zero bytes.*data\.broken_limit"):
        open_source(DataConfig(source=str(tmp_path), workers=0))


def test_large_sets_are_decoded_when_needed_and_say_so(tmp_path, make, caplog):
    make.write_images(tmp_path, ["1.png", "2.png"], size=64)
    with caplog.at_level(logging.INFO):
        # 2 * 64 * 64 * 3 bytes = 24,576 bytes = 2.3e-5 GiB
        source = open_source(DataConfig(source=str(tmp_path), workers=0, memory_gib=2e-5))
    assert isinstance(source, LazyImages)
    assert "decoded when they are needed" in caplog.text
    assert isinstance(open_source(DataConfig(source=str(tmp_path), workers=0, memory_gib=3e-5)), MemoryImages)


STORED = torch.arange(5 * 3 * 4 * 6, dtype=torch.uint8).reshape(5, 3, 4, 6)


@pytest.mark.parametrize(
    "images",
    [
        STORED,
        STORED.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        torch.cat([STORED, STORED])[1:6],
        STORED.repeat(1, 1, 2, 2)[:, :, ::2, 1::3],
        STORED.to(torch.uint16) * 257,
    ],
    ids=["channels first", "channels last", "a part", "every other pixel", "16 bits"],
)
def test_images_of_one_tensor_are_packed_where_they_lie(images):
    packed = pack(MemoryImages("here", images, torch.full((5,), -1)), [3, 0, 3])
    assert packed.pixels.data_ptr() == images.data_ptr()
    for image, index in zip(unpack_images(packed), [3, 0, 3], strict=True):
        assert torch.equal(image, images[index])


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (list(STORED), None),
        (STORED[:, :1], 3),
        (STORED / 255, None),
    ],
    ids=["a list", "other channels", "floating"],
)
def test_other_images_are_packed_as_copies(images, channels):
    source = MemoryImages("here", images, torch.full((5,), -1), channels=channels)
    packed = pack(source, [3, 0])
    assert packed.pixels.numel() == 2 * 3 * 4 * 6
    for image, index in zip(unpack_images(packed), [3, 0], strict=True):
        assert torch.equal(image, source.image(index))


def test_floating_images_of_one_tensor_are_looked_at():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        pack(MemoryImages("here", STORED.float(), torch.full((5,), -1)), [1])
