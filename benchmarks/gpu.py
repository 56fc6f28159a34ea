"""All that a GPU has to show, in slots of minutes: what is missing, stale or unfinished runs, of most value first.

python benchmarks/gpu.py --next --out OUT            # on a GPU, within --seconds; 0 seconds shows what is due
python benchmarks/gpu.py --next --out OUT --dry      # anywhere: every part at tiny sizes, Triton's kernels interpreted
python benchmarks/gpu.py --take OUT                  # where the repository is: into benchmarks/results

A part is a command in a process group with a limit. Its entry in the ledger says when it ran, on which card, at which
commit, how it ended, what it found, and the hash of the files that it depends on: with another hash it is stale.
OUT/ledger.json is replaced before and after every part, so that a slot that ends early loses one part, which then comes
after those that were not tried. OUT/parts.txt holds what they print. `benchmarks/gpu_pack.sh` makes what a machine
without a network lacks, and prints the calls.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from gpu_page import Ledger, table_of_targets

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACK = ROOT / ".pack"
RESULTS = HERE / "results"
LEDGER = RESULTS / "gpu/ledger.json"
TABLES = "<!-- what benchmarks/gpu.py writes: -->", "<!-- up to here -->"
LAST_LINES = 40  # of a part without a table
MORE = 75  # exit status of a part that goes on in another call
DRY = "a CPU, dry"  # card of a dry run
DRY_IS_SLOWER = 10
JSON, SECONDS = "{json}", "{seconds}"  # in a command: a file for its numbers, and what it may take
COMPILED = ["torch.compile of eager", "FlexAttention"]


class Part(NamedTuple):
    """A command, which reads the files that it names; a part of which fewer seconds than the limit are left waits."""

    name: str
    limit_s: float
    command: list[str]
    measures: list[str]  # further files, as patterns
    look: str  # first, if it fails
    lacks: str | None = None  # why it cannot run here
    takes_what_is_left: bool = False


def parts(out: Path, dry: bool) -> list[Part]:
    """By value."""
    cpu = ["--device", "cpu"] if dry else []

    def core(*rooms: str) -> list[str]:
        return [f"packages/core/src/ssl_core/{room}/**/*.py" for room in rooms]

    def either(tiny: str, full: str) -> list[str]:
        return (tiny if dry else full).split()

    def script(name: str, *arguments: str) -> list[str]:
        return [sys.executable, f"benchmarks/{name}.py", *arguments]

    def pytest(*arguments: str) -> list[str]:
        options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-v", "--tb=short"]
        return [sys.executable, "-m", "pytest", *options, *either("", "-m gpu --require-gpu"), *arguments]

    def attention(name: str, limit_s: float, what: str, shapes: list[str], *left_out: str, dtype: str) -> Part:
        options = [*cpu, *either("--repeats 1", f"--dtype {dtype}"), "--json", JSON, "--what", *what.split()]
        options += ["--shapes", *(["150x70x64"] if dry else shapes)]
        options += ["--leave-out", *left_out, *(["memory", *COMPILED] if dry else [])]
        look = "rows that say 'wrong by' or 'not run'; then the part correctness"
        return Part(name, limit_s, script("bench_queue_attention", *options), [*kernels, *core("losses")], look)

    def step(name: str, encoder: str, tiny: str, *more: str, limit_s: float = 90) -> Part:
        options = [*cpu, *either(f"--quick --encoder {tiny} --size 32 --batch 8", f"--encoder {encoder}")]
        command = script("bench_step", *options, "--methods", "SCE", "--capture", *more, "--profile", "--json", JSON)
        return Part(name, limit_s, command, trained, "its last line; where that is about memory, half the batch")

    def sanitizer(tool: str) -> Part:
        few = "(hides_columns or enqueue_is_that or streams or momentum_update_is_that) and (triton or cuda)"
        under = either("", f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool {tool} --error-exitcode 9")
        lacks = None if dry or shutil.which("compute-sanitizer") else "compute-sanitizer is not on the path"
        look = "the first line of ===== in parts.txt: the kernel and its line; the test is the one that was running"
        return Part(tool, 90, [*under, *pytest(on_gpu, "-k", few)], kernels, look, lacks)

    kernels, trained = [*core("ops"), "csrc/cuda/*"], [*core("ops", "losses", "nn", "train"), "csrc/cuda/*"]
    on_gpu, distributed = (f"packages/core/tests/{name}.py" for name in ("ops/test_on_gpu", "test_distributed"))
    tests = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("packages/core/tests/**/test_*.py"))]
    tests = [name for name in tests if "mark.gpu" in (ROOT / name).read_text() and name != distributed]
    tests += either("packages/core/tests/ops/test_enqueue.py -k triton", "-n 8" if find_spec("xdist") else "")
    shapes = [f"{n}x65536x{d}" for n, d in ((1024, 128), (512, 128), (1024, 256), (512, 256), (4096, 128), (256, 128))]
    run, pieces = (out / "run", out) if dry else (ROOT / "runs/gpu", PACK)
    slices = ["--run", str(run), "--pieces", str(pieces), "--data", str(PACK), "--seconds", SECONDS, "--json", JSON]
    needed = ["train-*.parquet", "test-*.parquet"]
    if not run.exists() and any(PACK.glob("run-*")):
        needed.append("piece-*")
    return [
        Part("correctness", 90, pytest(*tests), [*trained, *core("views", "data")],
             "the first line of FAILED, which names kernel, dtype and shape; if all fail, the first traceback"),
        attention("attention", 90, "attention", shapes, *COMPILED, dtype="bfloat16"),
        attention("losses", 60, "sce info_nce", shapes[:2], *COMPILED, dtype="bfloat16"),
        Part("momentum", 30, script("bench_momentum_update", *cpu, *either("--quick --model test_resnet", ""),
                                    "--json", JSON), kernels, "momentum_update in csrc/cuda and ssl_core/ops/_triton"),
        Part("views", 60, script("bench_views", *either("--rows cpu --quick", "--device cuda"), "--json", JSON),
             core("views", "ops"), "the case after its last row"),
        step("step-resnet18", "resnet18 --size 32 --batch 512", "test_resnet"),
        step("step-resnet50", "resnet50 --size 224 --batch 256", "test_resnet"),
        step("step-vit", "vit_small_patch16_224 --size 224 --batch 256", "test_vit", "--compile", limit_s=180),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        Part("training", 90, script("gpu_training", *slices, *either("--dry", "")), ["packages/sce/src/ssl_sce/**/*"],
             "the last lines of ssl-sce-train or ssl-core eval", None if dry else incomplete(needed), True),
        Part("tuner", 200, script("tune_queue_attention", *either("--interpret --dims 20", ""), "--seconds", SECONDS),
             core("ops/_triton"), "rows that say 'wrong by'; then the part correctness", takes_what_is_left=True),
        Part("neighbours", 120, script("bench_neighbours", *cpu, *either("--quick --rows 2000", "--device cuda")),
             ["packages/clim/src/ssl_clim/neighbours.py"], "whether faiss was built for GPUs, and for this one",
             None if find_spec("faiss") else "faiss is not installed"),
        Part("nccl", 60, pytest(distributed, "-k", "group_of_one"), ["packages/core/src/ssl_core/distributed.py"],
             "the same command with NCCL_DEBUG=INFO"),
        Part("captured", 90, script("bench_step", *cpu, "--size", "32", "--capture",
                                    *either("--quick --batch 8 --methods CLIM", "--encoder resnet18")),
             [*trained, "packages/*/src/ssl_*/method.py"], "the method after its last row, and whether it is captured"),
        attention("compiled", 100, "sce info_nce", shapes[:1], "memory", dtype="bfloat16"),
        attention("float32", 40, "attention", shapes[1:2], *COMPILED, dtype="float32"),
        Part("methods", 90, script("bench_step", *cpu, *either("--quick --batch 8 --methods LeOCLR", "")),
             [*trained, "packages/*/src/ssl_*/method.py"], "the method after its last row"),
    ]  # fmt: skip


def incomplete(patterns: Sequence[str]) -> str | None:
    """What the packs lack of files that are named NUMBER-of-NUMBER."""
    for pattern in patterns:
        names = {file.name for file in PACK.glob(f"*/{pattern}")}
        if {int(number) for name in names for number in re.findall(r"-of-(\d+)", name)} != {len(names)}:
            return f"{len(names)} of {pattern} in {PACK.name} are not all"
    return None


# -- the ledger


def read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.part")
    new.write_text(text)
    new.replace(file)


def merged(*ledgers: Ledger) -> Ledger:
    """The latest entry of each part."""
    entries = sorted((entry for ledger in ledgers for entry in ledger.values()), key=lambda entry: entry["when"])
    return {entry["part"]: entry for entry in entries}


def fingerprint(part: Part) -> str:
    """Hash of the files that a part depends on."""
    files = {file for pattern in part.measures for file in ROOT.glob(pattern)}
    files |= {ROOT / word for word in part.command if word.endswith(".py")}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc"):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def state(part: Part, ledger: Ledger) -> str:
    """One of missing, stale, failed, unfinished and fresh."""
    if (entry := ledger.get(part.name)) is None:
        return "missing"
    if entry["fingerprint"] != fingerprint(part):
        return "stale"
    return {"finished": "fresh", "unfinished": "unfinished"}.get(entry["ending"], "failed")


def tables(planned: Sequence[Part], ledger: Ledger) -> str:
    """What was found of the targets, and how every part ended, in Markdown."""
    lines = ["", "| part, by value | ended | seconds | card | commit | when |", "|---|---|---|---|---|---|"]
    for part in planned:
        entry = ledger.get(part.name, {"ending": "not yet run"})
        cells = [str(entry.get(key, "")) for key in ("ending", "seconds", "card", "commit", "when")]
        lines.append(f"| {part.name} | {' | '.join(cells)} |")
    return "\n".join([*table_of_targets(ledger), *lines])


def page(text: str, planned: Sequence[Part], ledger: Ledger) -> str:
    """A page with its tables written anew and its prose as it is."""
    (begin, end), (head, _, rest) = TABLES, text.partition(TABLES[0])
    return f"{head}{begin}\n\n{tables(planned, ledger)}\n\n{end}{rest.partition(end)[2]}"


def commit() -> str:
    """Of the checkout; empty where only its files are, or no git is."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def take(out: Path, planned: Sequence[Part]) -> Ledger:
    """Bring a slot's results into the repository, and the pieces of a run that goes on beside the packs."""
    brought: Ledger = read(out / "ledger.json")
    if not brought or any(entry["card"] == DRY for entry in brought.values()):
        raise SystemExit(f"{out} holds no results{' but of a dry run' if brought else ''}")
    ledger = merged(read(LEDGER), brought)
    for part in planned:
        entry = ledger.get(part.name)
        if entry and not entry["commit"] and entry["fingerprint"] == fingerprint(part):
            entry["commit"] = commit()
    write(LEDGER, json.dumps(ledger, indent=1) + "\n")
    write(RESULTS / "gpu.md", page((RESULTS / "gpu.md").read_text(), planned, ledger))
    lines = [line for name, entry in ledger.items() for line in ("", f"## {name}", "", *entry["printed"])]
    write(LEDGER.with_name("parts.md"), "\n".join(["# What the parts printed", *lines, ""]))
    for piece in out.glob("run-*/*"):
        (PACK / piece.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece, PACK / piece.parent.name / piece.name)
    return ledger


# -- a slot


def run(part: Part, limit_s: float, out: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """How a part ended, after how many seconds, what it printed, which goes to the log meanwhile, and its numbers."""
    start, log, numbers = time.monotonic(), out / "parts.txt", out / "numbers.json"
    values = {JSON: str(numbers), SECONDS: str(max(0, limit_s - 15))}
    with log.open("a+", newline="\n") as stream:
        stream.write(f"\n\n==== {part.name}\n\n")
        stream.flush()
        begin = stream.tell()
        # A group, to be killed with all that it started; no session, which would live on after the slot.
        process = subprocess.Popen(
            [values.get(word, word) for word in part.command],
            stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, process_group=0,
        )  # fmt: skip
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ending = f"killed after its {limit_s:.0f} s"
        else:
            ending = {0: "finished", MORE: "unfinished"}.get(code, f"failed with status {code}")
        stream.seek(begin)
        printed = [line.rpartition("\r")[2] for line in stream.read().rstrip().split("\n")]  # bars as they end
    if not any(line.startswith("|---") for line in printed):
        printed = printed[-LAST_LINES:]
    try:
        found = read(numbers)
    except json.JSONDecodeError:  # half written when it was killed
        found = {}
    numbers.unlink(missing_ok=True)
    return {"ending": ending, "seconds": round(time.monotonic() - start), "printed": printed, "numbers": found}


def run_next(
    planned: Sequence[Part], ledger: Ledger, out: Path, seconds: float, card: str, environment: Mapping[str, str]
) -> None:
    """Run what is due, by value, and then what has failed as it is now; as much as the seconds hold.

    Args:
        planned: the parts, by value.
        ledger: what is known of them; what is found is added to it.
        out: folder for ledger and log.
        seconds: for all parts together.
        card: name of the GPU.
        environment: of the processes.
    """
    end = time.monotonic() + seconds
    states = {part.name: state(part, ledger) for part in planned}
    due = [part for part in planned if states[part.name] != "fresh"]
    for part in sorted(due, key=lambda part: states[part.name] == "failed"):
        left_s = end - time.monotonic()
        if part.lacks or left_s < part.limit_s:
            print(f"{part.name} ({states[part.name]}) waits: {part.lacks or f'it may take {part.limit_s:.0f} s'}")
            continue
        begun = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"part": part.name, "when": begun, "card": card, "commit": commit(), "fingerprint": fingerprint(part)}
        # Until it has ended it counts as failed.
        ledger[part.name] = entry | {"ending": "begun", "seconds": 0, "printed": [], "numbers": {}}
        write(out / "ledger.json", json.dumps(ledger, indent=1))
        ledger[part.name] = entry | run(part, left_s if part.takes_what_is_left else part.limit_s, out, environment)
        write(out / "ledger.json", json.dumps(ledger, indent=1))
        print(f"{part.name}: {ledger[part.name]['ending']}, {ledger[part.name]['seconds']} s", flush=True)
        if state(part, ledger) == "failed":
            print(f"    look first at: {part.look}", flush=True)


def name_of_card() -> str:
    if shutil.which("nvidia-smi") is None:
        raise SystemExit("there is no GPU here (no nvidia-smi); --dry runs all parts on the CPU")
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--next", action="store_true", help="run what is due")
    parser.add_argument("--take", type=Path, metavar="OUT", help="bring the results of a slot into the repository")
    parser.add_argument("--out", type=Path, help="folder for the results of --next")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: nothing that it prints is a result")
    arguments = parser.parse_args()
    if arguments.next == (arguments.take is not None) or arguments.next == (arguments.out is None):
        parser.error("either --next and --out OUT, or --take OUT")
    out: Path = (arguments.out or arguments.take).resolve()
    planned = parts(out, arguments.dry)
    if arguments.take:
        ledger = take(out, planned)
    else:
        # An image may hold packages without bytecode, which each process would compile anew, and forbid to write it.
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
        sources = [str(path) for path in ROOT.glob("packages/*/src")]
        environment["PYTHONPATH"] = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        ledger = read(out / "ledger.json")
        if arguments.dry:
            environment |= {"TRITON_INTERPRET": "1", "SSL_CORE_TRITON_CONFIG": "128,64,4,1,1"}
            planned = [part._replace(limit_s=DRY_IS_SLOWER * part.limit_s) for part in planned]
        else:
            ledger = merged(read(LEDGER), ledger)
        run_next(planned, ledger, out, arguments.seconds, DRY if arguments.dry else name_of_card(), environment)
    print(f"\n{tables(planned, ledger)}")
    raise SystemExit(any(state(part, ledger) == "failed" for part in planned))


if __name__ == "__main__":
    main()
