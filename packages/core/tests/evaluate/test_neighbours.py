import pytest
import torch

from ssl_core.evaluate import choose_queries, neighbour_picture

GREEN, RED, GRAY, WHITE = (26, 152, 80), (215, 48, 39), (150, 150, 150), (255, 255, 255)
# From the left: margin and query with its frame, gap between blocks; then a neighbour every 64 + 2 * 4 + 4 pixels.
FIRST_COLUMN, FIRST_ROW, STEP = 4 + 72 + 20, 4 + 40, 76


def frames(picture, rows, columns, left=FIRST_COLUMN):
    return [
        [picture.getpixel((left + column * STEP, FIRST_ROW + row * STEP)) for column in range(columns)]
        for row in range(rows)
    ]


def test_frames_tell_whether_the_classes_agree(toy_source):
    train, test = toy_source([0, 1, -1, 0]), toy_source([1, 0])
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    queries = torch.tensor([[0.0, 1.0], [1.0, 0.1]])  # nearest: 1, 2, 3, 0 and 0, 3, 2, 1
    blocks = {"one": (bank, queries), "two": (bank, queries.flip(0))}
    picture = neighbour_picture(train, test, [0, 1], blocks, image_size=16, k=4, caption="toy")
    assert frames(picture, 2, 4) == [[GREEN, GRAY, RED, RED], [GREEN, GREEN, GRAY, RED]]
    second_block = FIRST_COLUMN + 4 * STEP - 4 + 20
    assert frames(picture, 2, 1, left=second_block) == [[RED], [RED]]


def test_images_are_shown_as_the_encoder_sees_them(toy_source):
    train, test = toy_source([0], size=16), toy_source([0], size=16, seed=5)
    blocks = {"one": (torch.ones(1, 2), torch.ones(1, 2))}
    picture = neighbour_picture(train, test, [0], blocks, image_size=16, k=1)
    for source, left in ((test, 4), (train, FIRST_COLUMN)):
        # 16 pixels shown on 64: each is 4 wide.
        shown = picture.getpixel((left + 4 + 4 * 3 + 1, FIRST_ROW + 4 + 4 * 7 + 1))
        assert shown == tuple(source.images[0, :, 7, 3].tolist())
    assert picture.getpixel((4, FIRST_ROW)) == WHITE


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("size", [8, 100])
def test_any_size_and_number_of_channels_can_be_shown(toy_source, channels, size):
    source = toy_source([0, 1], channels=channels, size=size)
    blocks = {"one": (torch.eye(2), torch.eye(2))}
    picture = neighbour_picture(source, source, [0, 1], blocks, image_size=96, k=2)
    assert frames(picture, 2, 2) == [[GREEN, RED], [GREEN, RED]]


def test_queries_are_the_first_of_each_class_then_the_second():
    labels = torch.tensor([1, 1, 0, -1, 2, 0, 1])
    assert choose_queries(labels, 3) == [2, 0, 4]
    assert choose_queries(labels, 99) == [2, 0, 4, 5, 1, 6]


def test_queries_without_labels_are_evenly_spaced():
    assert choose_queries(torch.full((9,), -1), 3) == [0, 4, 8]
    assert choose_queries(torch.full((2,), -1), 3) == [0, 1]
