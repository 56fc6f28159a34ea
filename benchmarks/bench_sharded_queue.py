"""SCE's loss over a queue that each process holds whole, or all share: time and memory against the queue's length.

python benchmarks/bench_sharded_queue.py            # 2 processes on this machine's CPUs
python benchmarks/bench_sharded_queue.py --quick

Each process has n queries and their targets, and takes loss and gradient; both queues in turns, in the same processes,
after their losses have been compared. Times are those of the slowest process: on the clock, which the messages
lengthen, and of its processor, which tells the work on a busy machine too. The memory of a queue is the rise of a
process's resident set when it is built, and "beside it" what a loss with its gradient adds to that (Linux).
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import describe_machine, resident_bytes

from ssl_core import distributed
from ssl_core.losses import soft_target_cross_entropy
from ssl_core.nn import Queue, QueueConfig
from ssl_core.testing.ranks import run_as_ranks

LENGTHS = [4096, 16384, 65536, 262144]
QUICK = [4096, 16384]
ROWS, DIM = 256, 128
KINDS = {"whole": False, "sharded": True}


def loss_and_gradient(query: torch.Tensor, key: torch.Tensor, queue: Queue) -> torch.Tensor:
    options = {"temperature": 0.1, "target_temperature": 0.05, "coefficient": 0.5}
    loss = soft_target_cross_entropy(query, key, key, queue.columns(), **options).mean()
    query.grad = None
    loss.backward()
    return loss.detach()


def build(built: dict[str, Queue], kind: str, length: int) -> None:
    built[kind] = Queue(QueueConfig(length, sharded=KINDS[kind]), DIM)


def measure_as_rank(folder: Path, lengths: list[int], repeats: int) -> None:
    distributed.setup(torch.device("cpu"))
    generator = torch.Generator().manual_seed(distributed.rank())
    query, key = (F.normalize(torch.randn(ROWS, DIM, generator=generator), dim=1) for _ in range(2))
    query.requires_grad_()
    loss_and_gradient(query, key, Queue(QueueConfig(256, sharded=True), DIM))  # loads what is loaded once
    records = []
    for length in lengths:
        built: dict[str, Queue] = {}
        new = {kind: {"k": length, "queue": kind, "times_s": [], "cpu_s": []} for kind in KINDS}
        for kind, record in new.items():
            record["queue_bytes"] = resident_bytes(partial(build, built, kind, length), peak=False)
            record["step_bytes"] = resident_bytes(partial(loss_and_gradient, query, key, built[kind]))
        losses = [loss_and_gradient(query, key, queue) for queue in built.values()]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
        for _ in range(repeats):
            for kind, record in new.items():
                distributed.barrier()
                start, cpu_start = time.perf_counter(), time.process_time()
                loss_and_gradient(query, key, built[kind])
                record["times_s"].append(time.perf_counter() - start)
                record["cpu_s"].append(time.process_time() - cpu_start)
        records += new.values()
    gathered = distributed.gather_objects(records)
    if distributed.is_main():
        for record, *others in zip(*gathered, strict=True):
            for name in ("times_s", "cpu_s"):
                times = torch.tensor([each[name] for each in (record, *others)], dtype=torch.float64)
                record[name] = times.amax(dim=0).tolist()
        torch.save(gathered[0], folder / "records.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="K", help="rows of the queues")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="short queues, 3 repeats")
    arguments = parser.parse_args()
    repeats, lengths = (3, QUICK) if arguments.quick else (arguments.repeats, arguments.lengths)

    print(__doc__.partition("\n")[0])
    print(describe_machine(torch.device("cpu")))
    print(f"{arguments.processes} processes of one thread, n {ROWS} each, d {DIM}, float32; {repeats} runs in turns\n")
    with tempfile.TemporaryDirectory() as folder:
        run_as_ranks(measure_as_rank, (Path(folder), lengths, repeats), processes=arguments.processes)
        records = torch.load(Path(folder, "records.pt"))
    print("| k | queue | median ms | spread ms | processor ms | queue MB | beside it MB |")
    print("|---|---|---|---|---|---|---|")
    for record in records:
        low, median, high = 1e3 * torch.tensor(record["times_s"]).quantile(torch.tensor([0.2, 0.5, 0.8]))
        cpu_ms = 1e3 * statistics.median(record["cpu_s"])
        print(
            f"| {record['k']:,} | {record['queue']} | {median:.1f} | {low:.1f} to {high:.1f} | {cpu_ms:.1f} "
            f"| {record['queue_bytes'] / 1e6:.1f} | {record['step_bytes'] / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
