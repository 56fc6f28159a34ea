import pytest
import torch

from ssl_core import distributed
from ssl_core.nn import Queue, QueueConfig
from ssl_core.nn import queue as queue_module
from ssl_core.nn.unit import unit


def test_keys_enter_in_order_and_the_oldest_leave():
    queue = Queue(QueueConfig(3, "empty"), 2)
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [3, 4], [4, 3]]), dim=1)
    queue.enqueue_(rows[:2])
    assert queue.valid_length.item() == 2
    assert queue.cursor.item() == 2
    queue.enqueue_(rows[2:])
    # Four keys through three rows: the first is gone, and the cursor stands behind the fourth.
    torch.testing.assert_close(queue.keys, rows[[3, 1, 2]])
    assert queue.valid_length.item() == 3
    assert queue.cursor.item() == 1


def test_random_rows_have_unit_length_no_direction_and_all_count():
    queue = Queue(QueueConfig(2048), 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(2048))
    # Each component of a mean of 2048 random directions has standard deviation 1 / sqrt(8 * 2048); four of them.
    assert queue.keys.mean(0).abs().max() < 4 / (8 * 2048) ** 0.5
    assert queue.valid_length is None


def test_random_rows_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = Queue(QueueConfig(5), 3, seed=7).keys
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(Queue(QueueConfig(5), 3, seed=7).keys, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(Queue(QueueConfig(5), 3, seed=8).keys, first)


def test_an_empty_queue_has_no_valid_row():
    assert Queue(QueueConfig(4, "empty"), 2).valid_length.item() == 0


def test_a_random_queue_counts_its_real_keys_too():
    queue = Queue(QueueConfig(4), 2)
    queue.enqueue_(torch.eye(2))
    assert queue.filled.item() == 2


@pytest.mark.parametrize("initial", ["random", "empty"])
def test_the_fill_counts_real_keys_whatever_the_queue_starts_with(initial):
    queue = Queue(QueueConfig(4, initial), 2)
    fills = []
    for _ in range(4):
        fills.append(queue.fill.item())
        queue.enqueue_(torch.eye(2)[:2])
    assert fills == [0.0, 0.5, 1.0, 1.0]


def test_the_rows_have_the_dtype_of_the_settings():
    assert Queue(QueueConfig(4, dtype="bfloat16"), 2).keys.dtype == torch.bfloat16


def test_the_state_continues_in_another_queue():
    queue, other = Queue(QueueConfig(5), 2), Queue(QueueConfig(5), 2, seed=1)
    queue.enqueue_(torch.eye(2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue_(-torch.eye(2))
    assert list(queue.state_dict()) == ["keys", "cursor", "filled"]
    for key, value in queue.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_a_queue_smaller_than_the_batch_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"queue of 3 rows cannot hold the 4 keys"):
        Queue(QueueConfig(3), 2).enqueue_(torch.randn(4, 2))


def test_a_queue_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"queue.length must be at least 1, got 0"):
        QueueConfig(0)


def test_a_queue_is_built_on_the_meta_device():
    with torch.device("meta"):
        queue = Queue(QueueConfig(4), 2)
    assert queue.keys.is_meta


@pytest.fixture
def in_shards(monkeypatch):
    """Builds the queue of each of several processes."""

    def built(processes, config, dim=3, seed=0):
        queues = []
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            queues.append(Queue(config, dim, seed=seed))
        return queues

    return built


def whole(queues):
    return torch.stack([queue.columns().keys for queue in queues], dim=1).flatten(0, 1)


@pytest.mark.parametrize("initial", ["random", "empty"])
@pytest.mark.parametrize(
    ("processes", "length", "sizes"), [(1, 5, [2, 5, 3]), (2, 10, [4, 10, 8]), (4, 12, [4, 8, 12])]
)
def test_shards_together_are_the_whole_queue_at_every_step(in_shards, initial, processes, length, sizes):
    expected = Queue(QueueConfig(length, initial), 3)
    queues = in_shards(processes, QueueConfig(length, initial, sharded=True))
    for step, num_keys in enumerate([0, *sizes, *sizes]):
        keys = unit(torch.randn(num_keys, 3))
        for queue in (expected, *queues):
            if num_keys:
                queue.enqueue_(keys)
            assert (queue.cursor, queue.filled, queue.fill) == (expected.cursor, expected.filled, expected.fill), step
        assert torch.equal(whole(queues), expected.keys)
        valid = [queue.columns().length for queue in queues]
        if initial == "random":
            assert valid == [None] * processes
        else:
            # Of row j < filled, process j mod N has row j // N.
            assert [int(rows) for rows in valid] == [
                len(range(rank, int(expected.filled), processes)) for rank in range(processes)
            ]
    assert all(queue.columns().is_sharded is (processes > 1) for queue in queues)


def test_keys_begin_at_any_row_after_a_resume_in_another_number_of_processes(in_shards):
    expected, queues = Queue(QueueConfig(8, "empty"), 3), in_shards(4, QueueConfig(8, "empty", sharded=True))
    for queue in (expected, *queues):
        queue.cursor.fill_(7)
        queue.filled.fill_(7)
    assert [int(queue.valid_length) for queue in queues] == [2, 2, 2, 1]
    for num_keys in (4, 8, 4):
        keys = unit(torch.randn(num_keys, 3))
        for queue in (expected, *queues):
            queue.enqueue_(keys)
        assert torch.equal(whole(queues), expected.keys)
        assert {int(queue.cursor) for queue in queues} == {int(expected.cursor)}


def test_random_rows_are_those_of_one_draw_however_many_are_made_at_once(in_shards, monkeypatch):
    expected = unit(torch.randn(83, 3, generator=torch.Generator().manual_seed(7)))
    for rows in (2**16, 16, 32):
        monkeypatch.setattr(queue_module, "_ROWS_AT_ONCE", rows)
        assert torch.equal(Queue(QueueConfig(83), 3, seed=7).keys, expected)
    queues = in_shards(4, QueueConfig(84, sharded=True), seed=7)
    assert torch.equal(whole(queues), unit(torch.randn(84, 3, generator=torch.Generator().manual_seed(7))))


def test_a_shard_loads_its_rows_of_a_whole_queue_and_its_own_state(in_shards):
    state = Queue(QueueConfig(12), 3, seed=1).state_dict()
    queues = in_shards(3, QueueConfig(12, sharded=True))
    for rank, queue in enumerate(queues):
        holder = torch.nn.ModuleDict({"queue": queue})
        holder.load_state_dict({f"queue.{name}": value for name, value in state.items()})
        assert torch.equal(queue.shard, state["keys"][rank::3])
        queue.load_state_dict(queue.state_dict())
    assert torch.equal(whole(queues), state["keys"])


def test_what_processes_cannot_share_is_refused_with_the_nearest_that_they_can(in_shards):
    with pytest.raises(
        ValueError, match=r"queue.length 100 .* 8 processes: take 96 or 104, or start 5 or 10 processes"
    ):
        in_shards(8, QueueConfig(100, sharded=True))
    assert [len(queue.keys) for queue in in_shards(8, QueueConfig(100))] == [100] * 8
    with pytest.raises(ValueError, match=r"number of keys 6 .* 4 processes"):
        in_shards(4, QueueConfig(8, sharded=True))[0].enqueue_(torch.eye(3)[[0, 1, 2] * 2])


def test_a_shard_is_not_taken_for_the_keys_of_a_queue(in_shards):
    queue = in_shards(2, QueueConfig(4, sharded=True))[0]
    with pytest.raises(AttributeError, match=r"a sharded queue has no keys, .*: give it columns\(\)"):
        queue.keys  # noqa: B018  # the access is what is tested
    assert set(queue.state_dict()) == {"shard", "cursor", "filled"}
    with pytest.raises(AttributeError, match="no_such_name"):
        queue.no_such_name  # noqa: B018  # likewise
