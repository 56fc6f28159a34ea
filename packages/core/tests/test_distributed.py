"""Collectives in one process, and in two gloo processes that run this file as a script."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_core import distributed
from ssl_core.nn import sync_batch_norm
from ssl_core.testing import DOUBLE, finished_process
from ssl_core.train import TrainConfig
from ssl_core.train.stepper import wrapped

ROWS = 3  # of each process


def rows_of(rank: int) -> Tensor:
    return torch.arange(ROWS * 2, dtype=torch.float32).reshape(ROWS, 2) + 100 * rank


def pairwise_loss(own: Tensor, everyone: Tensor, own_targets: Tensor) -> Tensor:
    """A mean over own rows in which every row of everyone takes part, as with in-batch negatives."""
    return torch.nn.functional.cross_entropy(own @ everyone.T, own_targets)


def embed(weight: Tensor, rank: int) -> Tensor:
    images = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return torch.tanh(images @ weight)


def weight() -> Tensor:
    return torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()


def batch_norm() -> torch.nn.Sequential:
    layer = torch.nn.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1, 2]))
        layer.bias.copy_(torch.tensor([-1, 0, 3]))
    return torch.nn.Sequential(layer)


def images_of(rank: int) -> Tensor:
    """Images of another number, size and mean in each process."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2 + rank, 3, 4, 5 - rank, generator=generator, dtype=torch.float64) + 3 * rank


def flat(images: Tensor) -> Tensor:
    """All values of each channel, (1 c values)."""
    return images.transpose(0, 1).reshape(1, 3, -1)


def uneven_loss(output: Tensor) -> Tensor:
    return (output.sin() * output).sum()


def run_as_one_of_two(folder: Path) -> None:
    device = distributed.setup(torch.device("cpu"))
    rank = distributed.rank()
    results: dict[str, object] = {
        "place": (rank, distributed.world_size(), distributed.is_main(), str(device)),
        "gather": distributed.gather(rows_of(rank).requires_grad_()),
        "indices": distributed.gather(torch.tensor([rank, rank + 10])),
        "broadcast": distributed.broadcast_object({"from": rank}),
        "objects": distributed.gather_objects(f"rank {rank}"),
    }
    parameter = weight()
    own = embed(parameter, rank)
    targets = torch.arange(ROWS) + rank * ROWS
    loss = pairwise_loss(own, distributed.gather_with_grad(own), targets)
    loss.backward()
    results["grad"] = parameter.grad
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = distributed.shuffle(rows_of(rank), order)
    results["shuffled"] = shuffled
    results["unshuffled"] = distributed.unshuffle(shuffled, order)
    layer, images = sync_batch_norm(batch_norm(), device), images_of(rank).requires_grad_()
    output = layer(images)
    uneven_loss(output).backward()
    results["normalized"] = flat(output.detach()), flat(images.grad)
    results["of parameters"] = torch.stack([parameter.grad for parameter in layer.parameters()])
    results["running"] = torch.stack([layer[0].running_mean, layer[0].running_var])
    half = layer.float()(images.detach().bfloat16())
    results["half"] = str(half.dtype), flat(half.double())
    orders = [torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    results["orders"] = orders
    results["permuted"] = [distributed.shuffle(rows_of(rank), order) for order in orders]
    results["exchanged"] = distributed.exchange(torch.tensor([10 * rank, 10 * rank + 1]))
    results["interleaved"] = distributed.interleaved(rows_of(rank).bfloat16())
    try:
        distributed.gather(torch.zeros(2 + rank, 1))
    except ValueError as error:
        results["unequal"] = str(error)
    distributed.barrier()
    distributed.teardown()
    results["after"] = distributed.world_size()
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("two_processes")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(folder),
    ]
    finished = finished_process(command)
    assert finished.returncode == 0, finished.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.distributed
class TestTwoProcesses:
    def test_each_knows_its_place(self, results):
        assert [result["place"] for result in results] == [(0, 2, True, "cpu"), (1, 2, False, "cpu")]
        assert [result["after"] for result in results] == [1, 1]

    def test_gather_is_in_rank_order_without_gradient(self, results):
        for result in results:
            assert torch.equal(result["gather"], torch.cat([rows_of(0), rows_of(1)]))
            assert not result["gather"].requires_grad
            assert result["indices"].tolist() == [0, 10, 1, 11]

    def test_gather_with_grad_gives_the_gradient_of_one_process(self, results):
        parameter = weight()
        everyone = torch.cat([embed(parameter, rank) for rank in range(2)])
        pairwise_loss(everyone, everyone, torch.arange(2 * ROWS)).backward()
        # DistributedDataParallel averages over processes.
        average = (results[0]["grad"] + results[1]["grad"]) / 2
        torch.testing.assert_close(average, parameter.grad, rtol=DOUBLE, atol=DOUBLE)

    def test_batch_norm_over_processes_is_that_of_all_values(self, results):
        layer = torch.nn.BatchNorm1d(3).double()
        layer.load_state_dict(batch_norm()[0].state_dict())
        values = torch.cat([flat(images_of(rank)) for rank in range(2)], dim=2).requires_grad_()
        output = layer(values)
        uneven_loss(output).backward()
        for column, expected in enumerate((output, values.grad)):
            found = torch.cat([result["normalized"][column] for result in results], dim=2)
            torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=DOUBLE)
        of_parameters = torch.stack([parameter.grad for parameter in layer.parameters()])
        found = sum(result["of parameters"] for result in results)
        torch.testing.assert_close(found, of_parameters, rtol=DOUBLE, atol=DOUBLE)
        for result in results:
            running = torch.stack([layer.running_mean, layer.running_var])
            torch.testing.assert_close(result["running"], running, rtol=DOUBLE, atol=DOUBLE)
        # The input's rounding, and the output's.
        assert [result["half"][0] for result in results] == ["torch.bfloat16"] * 2
        found = torch.cat([result["half"][1] for result in results], dim=2)
        torch.testing.assert_close(found, output, rtol=2**-7, atol=2**-6)

    def test_shuffle_follows_the_order_across_processes(self, results):
        everyone = torch.cat([rows_of(0), rows_of(1)])
        assert torch.equal(results[0]["shuffled"], everyone[[4, 0, 5]])
        assert torch.equal(results[1]["shuffled"], everyone[[2, 1, 3]])

    def test_each_row_goes_to_the_process_that_an_order_says(self, results):
        everyone = torch.cat([rows_of(0), rows_of(1)])
        for rank, result in enumerate(results):
            for order, permuted in zip(result["orders"], result["permuted"], strict=True):
                assert torch.equal(permuted, everyone[order[rank * ROWS :][:ROWS]])

    def test_block_i_goes_to_process_i(self, results):
        assert [result["exchanged"].tolist() for result in results] == [[0, 10], [1, 11]]

    def test_the_first_process_has_the_rows_of_all_in_turns(self, results):
        expected = torch.stack([rows_of(0), rows_of(1)], dim=1).flatten(0, 1).bfloat16()
        assert torch.equal(results[0]["interleaved"], expected)
        assert results[1]["interleaved"] is None

    def test_unshuffle_undoes_shuffle(self, results):
        for rank in range(2):
            assert torch.equal(results[rank]["unshuffled"], rows_of(rank))

    def test_unequal_sizes_are_refused_in_every_process(self, results):
        for result in results:
            assert "[2, 3] rows" in result["unequal"]

    def test_objects_are_shared(self, results):
        for result in results:
            assert result["broadcast"] == {"from": 0}
            assert result["objects"] == ["rank 0", "rank 1"]


def test_one_process_is_rank_0_of_1():
    assert distributed.setup(torch.device("cpu")) == torch.device("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    distributed.teardown()


def test_one_process_gathers_its_own_rows():
    rows = rows_of(0).requires_grad_()
    assert torch.equal(distributed.gather(rows), rows)
    assert not distributed.gather(rows).requires_grad
    assert distributed.gather_with_grad(rows) is rows
    assert distributed.gather_objects(3) == [3]
    assert distributed.broadcast_object(3) == 3


def test_one_process_shuffles_its_own_rows():
    order = torch.tensor([2, 0, 1])
    shuffled = distributed.shuffle(rows_of(0), order)
    assert torch.equal(shuffled, rows_of(0)[order])
    assert torch.equal(distributed.unshuffle(shuffled, order), rows_of(0))


def test_an_order_of_another_length_is_refused():
    with pytest.raises(ValueError, match="order of 2 does not fit 1 processes of 3 rows"):
        distributed.shuffle(rows_of(0), torch.tensor([1, 0]))


def test_several_processes_need_cpu_or_cuda(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="not mps"):
        distributed.setup(torch.device("mps"))


@pytest.mark.parametrize(
    ("backend", "device"), [("gloo", "cpu"), pytest.param("nccl", "cuda", marks=pytest.mark.gpu)], ids=["gloo", "nccl"]
)
def test_a_group_of_one_process_takes_the_step_that_a_process_alone_takes(backend, device, tmp_path, monkeypatch):
    layer, images = torch.nn.Linear(4, 2).to(device), torch.randn(8, 4, device=device)
    layer(images).square().mean().backward()
    alone = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    dist.init_process_group(backend, store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with monkeypatch.context() as patches:
            patches.setattr(distributed, "world_size", lambda: 2)  # so that it is wrapped
            wrapped(layer, TrainConfig())(images).square().mean().backward()
        rows, state = torch.empty_like(images), ["state"]
        dist.all_gather_into_tensor(rows, images)
        dist.broadcast_object_list(state)
        dist.barrier()
    finally:
        distributed.teardown()
    assert torch.equal(rows, images)
    torch.testing.assert_close([parameter.grad for parameter in layer.parameters()], alone)


if __name__ == "__main__":
    run_as_one_of_two(Path(sys.argv[1]))
