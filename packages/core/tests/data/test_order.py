import pytest
import torch

from ssl_core.data import Batches, DataConfig, LazyImages, MemoryImages, Order, open_encoded, open_source, reading_order
from ssl_core.data import order as order_module
from ssl_core.philox import permutation
from ssl_core.views import ViewConfig, make_view_specs

LENGTHS = torch.tensor([5, 3, 0, 7, 4, 6])
FIRSTS = LENGTHS.cumsum(0) - LENGTHS
SHARD_OF = torch.repeat_interleave(torch.arange(6), LENGTHS)


def whole(order, seed=3, epoch=1, start=0):
    return torch.cat([torch.empty(0, dtype=torch.int64), *order.parts(seed, epoch, start)])


def test_windows_of_shards_are_read_one_after_the_other_and_mixed_inside():
    parts = [*Order(LENGTHS, window=2).parts(3, 1)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(25))
    assert len(parts) == 3
    shards = [set(SHARD_OF[part].tolist()) for part in parts]
    assert sum(len(each) for each in shards) == len(set.union(*shards)) == 5  # and one is empty
    largest = max(parts, key=len)
    assert not torch.equal(
        SHARD_OF[largest].unique_consecutive(), SHARD_OF[largest].unique()
    )  # else they are not mixed


def test_of_all_shards_in_one_window_the_order_is_that_of_a_folder():
    expected = permutation(3, (0x6F726472, 1), 25)
    for window in (6, 100):
        assert torch.equal(whole(Order(LENGTHS, window)), expected)
    assert torch.equal(whole(Order(torch.tensor([25]))), expected)
    part = next(Order(LENGTHS, 2).parts(3, 1))  # and of fewer, it is that of their images among all
    assert torch.equal(part, expected[torch.isin(expected, part)])


def test_seed_and_epoch_change_the_order_of_shards_and_of_images():
    first = whole(Order(LENGTHS, 1))
    assert torch.equal(first, whole(Order(LENGTHS, 1)))
    orders = [first, whole(Order(LENGTHS, 1), seed=4), whole(Order(LENGTHS, 1), epoch=2)]
    assert len({tuple(SHARD_OF[each].unique_consecutive().tolist()) for each in orders}) == 3
    assert len({tuple(each[SHARD_OF[each] == 3].tolist()) for each in orders}) == 3


@pytest.mark.parametrize("start", [0, 1, 7, 13, 24, 25])
def test_an_order_may_be_entered_anywhere_without_making_what_lies_before(start, monkeypatch):
    order = Order(LENGTHS, 2)
    expected = whole(order)[start:]
    sizes = [len(part) for part in order.parts(3, 1)]
    made = []
    shuffled = order_module.shuffled
    monkeypatch.setattr(order_module, "shuffled", lambda *rest: made.append(1) or shuffled(*rest))
    assert torch.equal(whole(order, start=start), expected)
    assert len(made) == sum(sum(sizes[: number + 1]) > start for number in range(len(sizes)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_the_order_of_shards_resume_and_are_shared_as_others(workers):
    images = torch.randint(256, (25, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = MemoryImages("noise", images, torch.full((25,), -1))
    specs = make_view_specs([ViewConfig("weak", size=4)])
    options = {"seed": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3, "order": Order(LENGTHS, 2), "batch_size": 6}

    def numbers(start=0, **changes):
        return [batch.index for batch in Batches(source, specs, workers=workers, **options, **changes).epoch(1, start)]

    one = numbers()
    assert torch.equal(torch.cat(one), whole(Order(LENGTHS, 2))[:24])
    assert [index.tolist() for index in numbers(2)] == [index.tolist() for index in one[2:]]
    shares = [numbers(world_size=2, rank=rank) for rank in (0, 1)]
    assert [torch.cat(each).tolist() for each in zip(*shares, strict=True)] == [index.tolist() for index in one]
    assert len(torch.cat(numbers(remainder="keep")).unique()) == 24 + (len(whole(Order(LENGTHS, 2))) % 6 > 1)


def test_reading_by_shards_needs_tars_and_holds_nothing_in_memory(tmp_path, make):
    make.write_images(tmp_path / "photos", ["0.png", "1.png"])
    config = DataConfig(source=str(tmp_path / "photos"), workers=0, read="sequential", window=1)
    with pytest.raises(
        ValueError, match=r"sequential goes through tar shards, and .*photos is none: ssl-core data pack"
    ):
        reading_order(config, open_encoded(config))
    with pytest.raises(ValueError, match="has no effect with"):
        DataConfig(window=3)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        DataConfig(read="sequential", window=0)
    assert reading_order(DataConfig(), open_encoded(DataConfig())) is None
    assert isinstance(open_source(config), LazyImages)
