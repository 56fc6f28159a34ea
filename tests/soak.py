"""Runs that are killed at random moments and continued, until the time is over.

    nox -s soak -- --minutes 60

Each run trains SCE on the embedded digits, in one process or in two, and is killed again and again: its process,
one of its processes, torchrun, or all at once, by SIGKILL, SIGTERM or SIGUSR1, from its first import to its last step.
After each kill its checkpoint must load and be no older than the one before, and a finished run must have the losses
and the state of one that nobody killed, to the last bit. The last lines are a summary for benchmarks/results. Runs are
forked from this process, which has imported everything, and two processes have torchrun's agent.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from forked_torchrun import torchrun

import ssl_sce.train
from ssl_core.train import load_checkpoint, read_metrics

TRAIN = ["--config", "smoke", "--device", "cpu", "--train.epochs", "1", "--train.log_every", "1"]
TRAIN += ["--train.checkpoint_every", "2", "--evaluate.knn_every", "0", "--train.timeout", "30s"]
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 1, signal.SIGUSR1: 1}
LIMIT_S = 900.0  # in which a process ends, on a busy machine too
LAST = Path("checkpoints") / "last.pt"


class LostError(Exception):
    """A checkpoint that is gone, or numbers that differ."""


_numbers = itertools.count()


def _train(arguments: list[str]) -> None:
    ssl_sce.train.main(arguments)


def _run(processes: int, number: int, arguments: list[str]) -> None:
    """What a started process does, in silence and in a group of its own."""
    os.setpgid(0, 0)
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    if processes == 1:
        _train(arguments)
        return
    options = ["--nproc-per-node", f"{processes}", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    torchrun([*options, "--rdzv-id", f"{number}"], _train, arguments)


@contextlib.contextmanager
def started(processes: int, out: Path) -> Iterator[multiprocessing.Process]:
    """A run, of which nothing is left in the end."""
    arguments = (processes, next(_numbers), [*TRAIN, "--out", str(out)])
    run = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
    run.start()
    try:
        yield run
    finally:
        _kill(family(run.pid), signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # those that a torchrun has left that was killed while it forked
        run.join()


def ended(run: multiprocessing.Process, within_s: float) -> bool:
    """Whether a run's first process ends in time; `join` would wait for those that it leaves, too."""
    limit = time.monotonic() + within_s
    while run.exitcode is None and time.monotonic() < limit:
        time.sleep(0.02)
    return run.exitcode is not None


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *map(int, children.read_text().split())] if children.exists() else []


def result(out: Path) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Losses and state of a finished run."""
    losses = {record["step"]: record["loss"] for record in read_metrics(out) if "loss" in record}
    return losses, load_checkpoint(out / LAST)["method"]


def whole_run(processes: int, out: Path) -> tuple[Any, float]:
    """What a run gives that nobody kills, and its seconds."""
    begun = time.monotonic()
    with started(processes, out) as run:
        if not ended(run, LIMIT_S) or run.exitcode:
            raise LostError(f"{out}, which nobody killed, ended with status {run.exitcode}")
    return result(out), time.monotonic() - begun


def step_of(out: Path) -> int:
    """The step of a run's checkpoint, which must load; 0 where there has been none."""
    return load_checkpoint(out / LAST)["step"] if (out / LAST).exists() else 0


def check(out: Path, processes: int, expected: tuple[dict[int, float], dict[str, torch.Tensor]]) -> None:
    """Compare a finished run with one that nobody killed."""
    losses, state = result(out)
    different = [step for step in expected[0] if losses.get(step) != expected[0][step]]
    tensors = [name for name, value in expected[1].items() if not torch.equal(value, state[name])]
    if different or tensors or len(losses) != len(expected[0]):
        raise LostError(f"in {processes} process(es) steps {different} and state {tensors} differ, see {out}")


def killed_until_done(
    out: Path, processes: int, length_s: float, rng: random.Random, deadline: float, kills: Counter[int]
) -> bool:
    """Start a run, kill it at a random moment, and so on until it is done; whether it is, before the deadline."""
    done = 0
    while time.monotonic() < deadline:
        wait_s = rng.uniform(0, 1.1 * length_s)  # some before the first step, most in training
        number, whom = rng.choices([*SIGNALS], [*SIGNALS.values()])[0], rng.choice(["all", "one", "launcher"])
        with started(processes, out) as run:
            if ended(run, wait_s):
                if run.exitcode:
                    raise LostError(f"nobody killed {out}, and it ended with status {run.exitcode}")
                return True
            members = family(run.pid)
            _kill({"all": members, "one": [rng.choice(members[1:] or members)], "launcher": members[:1]}[whom], number)
            if not ended(run, LIMIT_S):
                raise LostError(f"{out} did not end within {LIMIT_S:g} s after {number.name} to {whom}")
        kills[processes] += 1
        step = step_of(out)
        print(
            f"{out.name}: {number.name} to {whom} after {wait_s:.1f} s, status {run.exitcode}, step {step}", flush=True
        )
        if step < done:
            raise LostError(f"the checkpoint of step {done} is gone, there is one of step {step}, see {out}")
        done = step
    return False


def _kill(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    """Run until the time is over; the status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes to take turns")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    rng, kills, finished = random.Random(arguments.seed), Counter[int](), 0
    begun = time.monotonic()
    deadline = begun + 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    expected = {n: whole_run(n, folder / f"whole-{n}") for n in arguments.processes}
    try:
        while time.monotonic() < deadline:
            for processes in arguments.processes:
                out = folder / f"run-{finished}-{processes}"
                whole, length_s = expected[processes]
                if killed_until_done(out, processes, length_s, rng, deadline, kills):
                    check(out, processes, whole)
                    shutil.rmtree(out)
                    finished += 1
    except (LostError, ValueError) as error:
        print(f"LOST (seed {arguments.seed}): {error}")
        sys.exit(1)
    finally:
        minutes = (time.monotonic() - begun) / 60
        numbers = ", ".join(f"{count} of runs in {processes}" for processes, count in sorted(kills.items()))
        print(f"{kills.total()} kills ({numbers}) in {minutes:.1f} minutes, {finished} runs finished and compared")
    shutil.rmtree(folder)
    print("no checkpoint was lost, and no loss differs")


if __name__ == "__main__":
    main()
