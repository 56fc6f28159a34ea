import pytest
import torch
from PIL import Image

from ssl_core.views import (
    CenterCrop,
    Solarize,
    ViewConfig,
    ViewSpec,
    derive,
    make_view_specs,
    save_view_gallery,
    view_gallery,
)

PLAIN = ViewSpec((CenterCrop(),), (32,), "plain")


class Flat:
    """Images of one gray level each: 10 times their index."""

    def __len__(self):
        return 20

    def image(self, index):
        return torch.full((1, 40, 40), 10 * index, dtype=torch.uint8)


def test_a_row_holds_the_original_and_every_view():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image[1:] = 0
    inverted = derive([PLAIN], 0, [Solarize(prob=1.0)])
    sheet = view_gallery([image, image], [PLAIN, inverted])
    # Columns of 96 px (32 px enlarged three times) with gaps of 6, below a header of 32.
    assert sheet.size == (6 + 3 * 102, 6 + 32 + 2 * 102)
    for row in (0, 1):
        middle = 6 + 32 + row * 102 + 48
        assert sheet.getpixel((6 + 48, middle)) == (255, 0, 0)
        assert sheet.getpixel((6 + 102 + 48, middle)) == (255, 0, 0)
        assert sheet.getpixel((6 + 204 + 48, middle)) == (0, 0, 0)


def test_labels_are_drawn_above_the_columns():
    header = view_gallery([torch.zeros(1, 8, 8)], [PLAIN]).crop((108, 0, 210, 38)).convert("L")
    assert header.getextrema()[0] < 100


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32], ids=str)
def test_any_channels_and_type_can_be_shown(count, dtype):
    image = torch.ones(count, 20, 90, dtype=dtype)
    specs = make_view_specs([ViewConfig("strong", 128), ViewConfig("weak", 16)])
    assert view_gallery([image], specs).size == (6 + 134 + 134 + 102, 6 + 32 + 134)


def test_the_gallery_shows_the_draws_of_the_given_epoch_and_image():
    specs = make_view_specs([ViewConfig("weak", 32)])
    images = [torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))]

    def picture(**where):
        return view_gallery(images, specs, **where).tobytes()

    reference = picture(seed=1, epoch=2, image_index=[3])
    assert reference == picture(seed=1, epoch=2, image_index=[3])
    assert reference != picture(seed=2, epoch=2, image_index=[3])
    assert reference != picture(seed=1, epoch=3, image_index=[3])
    assert reference != picture(seed=1, epoch=2, image_index=[4])


def test_a_file_shows_images_spread_over_the_source(tmp_path):
    save_view_gallery(Flat(), [PLAIN], tmp_path / "views.png", num_images=4)
    sheet = Image.open(tmp_path / "views.png")
    levels = [sheet.getpixel((54, 38 + 102 * row + 48))[0] for row in range(4)]
    assert levels == [0, 50, 100, 150]  # images 0, 5, 10, 15 of 20


def test_a_small_source_shows_all_its_images(tmp_path):
    save_view_gallery(Flat(), [PLAIN], tmp_path / "views.png", num_images=99)
    assert Image.open(tmp_path / "views.png").size[1] == 38 + 20 * 102


def test_a_gallery_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 views"):
        view_gallery([torch.zeros(1, 8, 8)], [])
    with pytest.raises(ValueError, match="0 images"):
        view_gallery([], [PLAIN])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_view_gallery(Flat(), [PLAIN], tmp_path / "none" / "views.png")
