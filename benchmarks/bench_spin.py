"""How fast the training loop is by how OpenMP's threads wait for each other, alone and beside a process that is busy.

python benchmarks/bench_spin.py            # 5 1/2 minutes
python benchmarks/bench_spin.py --quick

Each variant is a training run of the recipe quickstart, changed by the options that are none of the benchmark's, in a
process of its own that has the variables of its name and waits after every epoch. In a round each of them trains one
epoch alone and one beside a loop in pure Python, which holds a core; their order moves on by one from round to round.
Speeds are relative to the first variant's of the same round.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from machine import describe_machine

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Row -> variables of the environment. The first is what the others are compared with.
VARIANTS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (100, 1000, 10_000, 100_000)},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
CONDITIONS = ("alone", "beside a busy process")
RECIPE = ["--config", "quickstart", "--evaluate.knn_every", "null"]
# More than there will be; only what stands between two epochs takes time that is not a step's.
ENDLESS = ["--train.epochs", "100000", "--train.checkpoint_every", "1000000000"]
SPEED = "steps/s: "


def train(options: list[str]) -> None:
    """Train as ssl-sce-train does; after each epoch print its speed and wait for a line of standard input."""
    from ssl_sce.train import main as command

    def prepare(run: Any) -> Callable[[int], dict[str, float]]:
        started = time.perf_counter()

        def before_epoch(epoch: int) -> dict[str, float]:
            nonlocal started
            steps = len(run.source) // run.config.train.batch_size
            print(f"{SPEED}{steps / (time.perf_counter() - started)}", flush=True)
            if not sys.stdin.readline():
                raise SystemExit
            started = time.perf_counter()
            return {}

        return before_epoch

    dataclasses.replace(command, prepare=prepare)(options)


class Run:
    """A training run in a process of its own, which waits.

    Args:
        options: of ssl-sce-train.
        variables: of its environment, which has none of VARIABLES besides.
        log: file for its standard error.
    """

    def __init__(self, options: list[str], variables: dict[str, str], log: Path) -> None:
        others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--train", *options],
                env=others | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._wait()

    def steps_per_s(self) -> float:
        """Steps a second of the next epoch."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._wait()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _wait(self) -> float:
        for line in self._process.stdout:
            if line.startswith(SPEED):
                return float(line.removeprefix(SPEED))
        raise RuntimeError(f"a training run has ended: {self._log.read_text()}")


@contextlib.contextmanager
def busy(condition: str) -> Iterator[None]:
    """A process that holds one core, where the condition says so."""
    if condition == "alone":
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(options: list[str], seconds: float) -> dict[str, dict[str, list[float]]]:
    """Steps a second in each round, by condition and variant; as many rounds as the seconds hold, two at least."""
    found: dict[str, dict[str, list[float]]] = {each: {name: [] for name in VARIANTS} for each in CONDITIONS}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runs = {}
        for number, (name, variables) in enumerate(VARIANTS.items()):
            out = ["--out", str(Path(folder, str(number)))]
            runs[name] = Run([*RECIPE, *options, *ENDLESS, *out], variables, Path(folder, f"{number}.log"))
            stack.callback(runs[name].end)
            runs[name].steps_per_s()  # the first epoch warms up
        names, rounds, longest = list(VARIANTS), 0, 0.0
        while rounds < 2 or time.monotonic() + longest < end:
            start = time.monotonic()
            first = rounds % len(names)
            for condition in CONDITIONS:
                with busy(condition):
                    for name in names[first:] + names[:first]:
                        found[condition][name].append(runs[name].steps_per_s())
            rounds += 1
            longest = max(longest, time.monotonic() - start)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--json", type=Path, help="file for the speeds of every round")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args()
    if arguments.train:
        train(options)
        return

    print(__doc__.partition("\n")[0])
    print(describe_machine(torch.device("cpu")))
    found = measure(options, 0 if arguments.quick else arguments.seconds)
    rounds = len(found["alone"]["libgomp's default"])
    print(f"ssl-sce-train {' '.join([*RECIPE, *options])}; {rounds} rounds in turns\n")
    print("| environment | condition | median steps/s | spread | to the default |")
    print("|---|---|---|---|---|")
    for condition, speeds in found.items():
        unit = next(iter(speeds.values()))
        for name, values in speeds.items():
            low, *_, high = quantiles(values, n=5, method="inclusive")
            ratio = median(value / base for value, base in zip(values, unit, strict=True))
            print(f"| {name} | {condition} | {median(values):.2f} | {low:.2f} to {high:.2f} | {ratio:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
