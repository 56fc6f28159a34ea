"""All that a GPU has to show, in one call of ten minutes: tests, rates, kernels, tuner, views, steps.

python benchmarks/gpu.py --out OUT            # on a GPU
python benchmarks/gpu.py --out OUT --dry      # anywhere: the same parts at tiny sizes, Triton's kernels interpreted

Each part is a process with a limit of its own, so that one that hangs or fails costs no other; what matters most comes
first. OUT/parts.txt holds what they print, as they print it. OUT/gpu.md is written anew after every part: the table of
targets, then the parts; it is what goes into benchmarks/results. JSON files hold the numbers.

Nothing need be installed but PyTorch with CUDA, Triton, jaxtyping, numpy and timm; the sources are taken from this
checkout. The tests need pytest and jsonargparse (and are faster with pytest-xdist), the steps jsonargparse and the
packages' other requirements, lightly's row lightly, kornia's kornia: without them a part or a row says that it did not
run, and why. The back-end `cuda` needs ssl_core/libssl_core_cuda.so beside the sources, where `pip install
--no-build-isolation -e packages/core` puts it (with hatchling, editables, pybind11, ninja and nvcc); it holds its own
CUDA runtime, so that one built on another machine serves as well.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Of a part without a table, its end.
LAST_LINES = 40
COMPILED = ["torch.compile of eager", "FlexAttention"]


class Part(NamedTuple):
    """A command, and the seconds after which it is ended."""

    name: str
    limit_s: float
    command: list[str]


def parts(out: Path, dry: bool) -> list[Part]:
    """In the order in which they run; a limit of 0 stands for what the others leave."""

    def script(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *arguments]

    def attention(name: str, limit_s: float, dtype: str, what: list[str], shapes: list[str], *left_out: str) -> Part:
        options = ["--device", "cpu", "--repeats", "1"] if dry else ["--dtype", dtype]
        options += ["--json", str(out / f"{name}.json"), "--what", *what]
        options += ["--shapes", *(["1024x64x128"] if dry else shapes)]
        options += ["--leave-out", *left_out, *(["memory", *COMPILED] if dry else [])]
        return Part(name, limit_s, script("bench_queue_attention", *options))

    tests = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    tests += ["-q", "-ra", "-m", "gpu", "--tb=short", str(ROOT / "packages/core/tests/ops/test_on_gpu.py")]
    tests += [str(ROOT / f"packages/core/tests/{name}.py") for name in ("data/test_device", "data/test_pipeline")]
    tests += [] if dry else ["--require-gpu", *(["-n", "8"] if find_spec("xdist") else [])]
    shapes = ["1024x65536x128", "512x65536x128", "1024x65536x256", "512x65536x256", "4096x65536x128", "256x65536x128"]
    cpu = ["--device", "cpu"] if dry else []
    momentum = [*cpu, "--json", str(out / "momentum.json"), *(["--quick", "--model", "test_resnet"] if dry else [])]
    losses = ["sce", "info_nce"]
    return [
        Part("machine", 40, script("machine", *cpu)),
        Part("tests", 150, tests),
        attention("attention", 90, "bfloat16", ["attention"], shapes, *COMPILED),
        attention("losses", 60, "bfloat16", losses, shapes[:2], *COMPILED),
        Part("momentum", 30, script("bench_momentum_update", *momentum)),
        attention("compiled", 100, "bfloat16", losses, shapes[:1], "memory"),
        attention("float32", 40, "float32", ["attention"], shapes[1:2], *COMPILED),
        Part("tune", 0, script("tune_queue_attention", *(["--interpret", "--dims", "20"] if dry else []))),
        Part("views", 60, script("bench_views", *(["--rows", "cpu", "--quick"] if dry else ["--device", "cuda"]))),
        Part("step", 60, script("bench_step", *cpu, *(["--quick", "--batch", "8"] if dry else []))),
    ]


def run(part: Part, limit_s: float, log: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What the part printed, which goes to the log meanwhile, and how it ended."""
    start = time.monotonic()
    with log.open("a") as stream:
        stream.write(f"\n\n==== {part.name}\n\n")
        stream.flush()
        begin = stream.tell()
        process = subprocess.Popen(
            part.command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
            ending = f"ended after its {limit_s:.0f} s"
        else:
            ending = "finished" if code == 0 else f"failed with status {code}"
    with log.open() as stream:
        stream.seek(begin)
        printed = stream.read()
    return printed, f"{ending} ({time.monotonic() - start:.0f} s)"


class Target(NamedTuple):
    """What is wanted, the least of it, and what was found: (where, number), of which all must reach the least."""

    text: str
    least: float
    unit: str
    found: list[tuple[str, float]]

    def show(self, number: float) -> str:
        """As a ratio or in percent."""
        return f"{number:.2f}x" if self.unit == "x" else f"{100 * number:.0f} %"


Rows = dict[str, dict[str, Any]]  # by implementation


def targets(out: Path) -> list[Target]:
    """From the JSON files that are there so far."""
    losses, attention = by_size(read(out / "losses.json"), "sce"), by_size(read(out / "attention.json"), "attention")
    shares = read(out / "momentum.json") or {}
    updates = {name: shares[name] for name in ("triton", "cuda") if name in shares}
    rates = []
    for (n, d), rows in attention.items():
        name = fastest(rows, "triton")
        if n >= 1024 and d == 128 and name:
            rates.append((f"n {n}, {name}", rows[name]["flops"] / rows[name]["seconds"] / rows[name]["peak_flops"]))
    return [
        Target("SCE's loss and gradient, n >= 512: times eager", 4.0, "x", ratios(losses, "eager")),
        Target("attention, n >= 512: times SDPA-flash", 1.1, "x", ratios(attention, "sdpa")),
        Target("attention, Triton, n >= 1024, d 128: of the measured matrix rate", 0.55, "%", rates),
        Target("momentum update of a ResNet-50, the faster kernel: of a copy's bandwidth", 0.85, "%",
               sorted(updates.items(), key=lambda item: item[1])[-1:]),
    ]  # fmt: skip


def by_size(records: list[dict[str, Any]] | None, what: str) -> dict[tuple[int, int], Rows]:
    """(n, d) -> implementation -> record."""
    sizes: dict[tuple[int, int], Rows] = {}
    for record in records or []:
        if record["what"] == what:
            sizes.setdefault((record["n"], record["d"]), {})[record["implementation"]] = record
    return sizes


def fastest(rows: Rows, *kernels: str) -> str | None:
    """Of the named kernels, with or without the promise of unit rows."""
    names = [name for name in rows if name.partition(",")[0] in kernels]
    return min(names, key=lambda name: rows[name]["seconds"], default=None)


def ratios(sizes: dict[tuple[int, int], Rows], other: str) -> list[tuple[str, float]]:
    """How many times as fast as another implementation the faster of the two kernels is."""
    found = []
    for (n, d), rows in sizes.items():
        ours = fastest(rows, "triton", "cuda")
        if n >= 512 and ours and other in rows:
            found.append((f"n {n}, d {d}, {ours}", rows[other]["seconds"] / rows[ours]["seconds"]))
    return found


def read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def table_of_targets(found: list[Target]) -> list[str]:
    """Markdown; a target that was not measured says so."""
    lines = ["| target | at least | measured | met |", "|---|---|---|---|"]
    for target in found:
        measured = "; ".join(f"{target.show(number)} ({where})" for where, number in target.found) or "not yet run"
        met = "yes" if all(number >= target.least for _, number in target.found) else "no"
        lines.append(f"| {target.text} | {target.show(target.least)} | {measured} | {met if target.found else ''} |")
    return lines


def choice_of_kernel(out: Path) -> list[str]:
    """Which of the two kernels is faster where; their order in ssl_core/ops/queue_attention.py follows from it."""
    lines = ["| n | d | triton, ms | cuda, ms | faster |", "|---|---|---|---|---|"]
    for (n, d), rows in by_size(read(out / "attention.json"), "attention").items():
        names = [fastest(rows, kernel) for kernel in ("triton", "cuda")]
        cells = [f"{1e3 * rows[name]['seconds']:.3f} ({name})" if name else "not run" for name in names]
        lines.append(f"| {n} | {d} | {' | '.join(cells)} | {fastest(rows, 'triton', 'cuda') or ''} |")
    return lines


def report(out: Path, title: str, done: list[tuple[Part, str, str]]) -> None:
    """Write OUT/gpu.md."""
    lines = [f"# {title}", "", *table_of_targets(targets(out)), ""]
    lines += ["## Triton or CUDA C++", "", *choice_of_kernel(out), ""]
    for part, printed, ending in done:
        rows = printed.rstrip().splitlines()
        # Of what is no table, the end.
        rows = rows if any(row.startswith("|---") for row in rows) else rows[-LAST_LINES:]
        lines += [f"## {part.name}: {ending}", "", *rows, ""]
    (out / "gpu.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all parts together (four times that if dry)")
    parser.add_argument(
        "--parts", nargs="+", default=[part.name for part in parts(Path(), dry=False)], help="only these"
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: nothing that it prints is a result")
    parser.add_argument("--title", default="Kernels on a GPU", help="of OUT/gpu.md")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "parts.txt").write_text("")
    for file in out.glob("*.json"):
        file.unlink()
    title = "Dry run on the CPU at tiny sizes: these are no results" if arguments.dry else arguments.title
    sources = [str(path) for path in ROOT.glob("packages/*/src")]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
    if arguments.dry:
        environment |= {"TRITON_INTERPRET": "1", "SSL_CORE_TRITON_CONFIG": "128,64,4,1,1"}

    end = time.monotonic() + arguments.seconds * (4 if arguments.dry else 1)
    planned = [part for part in parts(out, arguments.dry) if part.name in arguments.parts]
    planned = [part._replace(limit_s=part.limit_s * (4 if arguments.dry else 1)) for part in planned]
    done: list[tuple[Part, str, str]] = []
    for index, part in enumerate(planned):
        left_s = end - time.monotonic()
        limit_s = min(left_s, part.limit_s)
        if part.limit_s == 0:
            limit_s = left_s - sum(later.limit_s for later in planned[index + 1 :])
            part = part._replace(command=[*part.command, "--seconds", str(max(0, limit_s - 15))])
        if limit_s < 20:
            done.append((part, "", "not run: no time was left"))
        else:
            done.append((part, *run(part, limit_s, out / "parts.txt", environment)))
        print(f"{part.name}: {done[-1][2]}", flush=True)
        report(out, title, done)
    print("\n".join(["", *table_of_targets(targets(out)), "", f"wrote {out / 'gpu.md'}"]))


if __name__ == "__main__":
    main()
