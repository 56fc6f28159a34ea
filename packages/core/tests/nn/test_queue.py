import pytest
import torch

from ssl_core.nn import Queue, QueueConfig


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
