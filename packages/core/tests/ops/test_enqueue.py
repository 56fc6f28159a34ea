"""The ring buffer: any batch size gives what inserting key by key gives."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from ssl_core.ops import _triton, cpp, enqueue_

TRITON_KERNELS = ["triton"] if _triton.is_interpreted() else []


@pytest.fixture(params=["reference", *cpp.instruction_sets(), *TRITON_KERNELS], autouse=True)
def _implementation(request, monkeypatch):
    """Each test with the reference and with the compiled kernels, of which every instruction set."""
    if request.param in ("reference", "triton"):
        monkeypatch.setenv("SSL_CORE_BACKEND", request.param)
    else:
        monkeypatch.setenv("SSL_CORE_CPU_ISA", request.param)


def ring(k, d=3, cursor=0, length=0, dtype=torch.float32):
    return torch.zeros(k, d, dtype=dtype), torch.tensor(cursor), torch.tensor(length)


def inserted_one_by_one(k, keys, cursor, length):
    rows = [torch.zeros(keys.shape[1])] * k
    for key in keys:
        rows[cursor] = F.normalize(key, dim=0)
        cursor, length = (cursor + 1) % k, min(length + 1, k)
    return torch.stack(rows), cursor, length


def test_two_keys_wrap_past_the_end_by_hand():
    queue, cursor, length = ring(3, 2, cursor=2, length=2)
    enqueue_(queue, torch.tensor([[3.0, 4.0], [0.0, -2.0]]), cursor, length)
    # (3, 4) / 5 goes to row 2, (0, -2) / 2 to row 0.
    torch.testing.assert_close(queue, torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.6, 0.8]]))
    assert (int(cursor), int(length)) == (1, 3)


@pytest.mark.parametrize("cursor", [0, 3, 6])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 14, 17], ids=lambda n: f"{n} keys in 7 rows")
def test_any_batch_size_is_inserting_one_by_one(n, cursor):
    keys = torch.randn(n, 3)
    queue, cursor_tensor, length = ring(7, cursor=cursor, length=cursor)
    enqueue_(queue, keys, cursor_tensor, length)
    expected, expected_cursor, expected_length = inserted_one_by_one(7, keys, cursor, cursor)
    torch.testing.assert_close(queue, expected)
    assert (int(cursor_tensor), int(length)) == (expected_cursor, expected_length)


def test_several_batches_are_one_long_batch():
    batches = torch.randn(5, 4, 3)
    at_once, in_turn = ring(7), ring(7)
    enqueue_(at_once[0], batches.flatten(0, 1), *at_once[1:])
    for batch in batches:
        enqueue_(in_turn[0], batch, *in_turn[1:])
    torch.testing.assert_close(in_turn, at_once)


def test_only_the_oldest_rows_are_overwritten():
    queue, cursor, length = ring(7, cursor=2)
    queue.fill_(5.0)
    enqueue_(queue, torch.randn(3, 3), cursor, length)
    assert (queue == 5.0).all(dim=1).tolist() == [True, True, False, False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keys_are_normalized_in_float32_and_rounded_once(dtype):
    keys = (100 * torch.randn(5, 64)).to(dtype)
    queue, cursor, length = ring(5, 64, dtype=dtype)
    enqueue_(queue, keys, cursor, length)
    assert torch.equal(queue, F.normalize(keys.float(), dim=1).to(dtype))


def test_a_zero_key_stays_zero():
    queue, cursor, length = ring(2)
    enqueue_(queue, torch.zeros(1, 3), cursor, length)
    assert torch.equal(queue, torch.zeros(2, 3))


def test_a_key_that_holds_a_nan_becomes_nothing_else():
    queue, cursor, length = ring(2)
    enqueue_(queue, torch.tensor([[1.0, torch.nan, 0.0]]), cursor, length)
    assert queue[0].isnan().all()


def test_keys_with_a_gradient_leave_none_in_the_queue():
    queue, cursor, length = ring(4)
    enqueue_(queue, torch.randn(2, 3, requires_grad=True), cursor, length)
    assert not queue.requires_grad


def test_strided_keys_and_queues_are_read_and_written_correctly():
    keys = torch.randn(3, 5)
    contiguous, strided = ring(7), ring(7)
    enqueue_(contiguous[0], keys.T.contiguous(), *contiguous[1:])
    enqueue_(strided[0], keys.T, *strided[1:])
    assert torch.equal(strided[0], contiguous[0])
    transposed, rows_apart = torch.zeros(3, 7).T, torch.zeros(7, 6)[:, ::2]
    for queue in (transposed, rows_apart):
        enqueue_(queue, keys.T, *ring(7)[1:])
        assert torch.equal(queue, contiguous[0])


@pytest.mark.parametrize("n", [2, 9], ids=["few", "more than rows"])
def test_the_op_is_registered_correctly(n):
    torch.library.opcheck(
        torch.ops.ssl_core.enqueue_, (*ring(7, cursor=6)[:1], torch.randn(n, 3), *ring(7, cursor=6)[1:])
    )


@pytest.mark.parametrize("num_keys", [700, 2100])
def test_wide_keys_are_shared_among_threads(num_keys):
    keys = torch.randn(num_keys, 131)
    queue, cursor, length = ring(1000, 131, cursor=900)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        enqueue_(queue, keys, cursor, length)
    finally:
        torch.set_num_threads(before)
    kept = keys[-1000:]
    rows = (900 + num_keys - len(kept) + torch.arange(len(kept))) % 1000
    torch.testing.assert_close(queue[rows], F.normalize(kept, dim=1))
    assert int((queue == 0).all(dim=1).sum()) == 1000 - len(kept)


@pytest.mark.parametrize("position", ["cursor", "length"])
def test_a_position_of_another_dtype_is_an_error(position):
    positions = {"cursor": torch.tensor(0), "length": torch.tensor(0)} | {position: torch.tensor(0, dtype=torch.int32)}
    with pytest.raises(ValueError, match=rf"{position} must be 0-dim int64, got \(\) torch.int32"):
        inspect.unwrap(enqueue_)(torch.zeros(4, 3), torch.ones(2, 3), **positions)


@pytest.mark.skipif(not cpp.instruction_sets(), reason="the compiled kernels are not there")
@pytest.mark.parametrize("cursor", [-1, 4])
def test_a_cursor_outside_of_the_queue_writes_nothing_elsewhere(cursor, monkeypatch):
    monkeypatch.setenv("SSL_CORE_BACKEND", "cpp")
    with pytest.raises(ValueError, match=rf"cursor must be in \[0, 4\), the rows of the queue, got {cursor}"):
        enqueue_(*ring(4, cursor=cursor)[:1], torch.ones(2, 3), torch.tensor(cursor), torch.tensor(0))


@pytest.mark.parametrize(
    ("queue", "message"),
    [(torch.zeros(4, 2), "keys have dimension 3, the queue has 2"), (torch.zeros(0, 3), "the queue has no rows")],
    ids=["dimension", "no rows"],
)
def test_a_queue_that_cannot_take_the_keys_is_an_error(queue, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(enqueue_)(queue, torch.ones(2, 3), torch.tensor(0), torch.tensor(0))
