"""Slots of benchmarks/gpu.py with made parts: from an empty ledger to a full one, whatever ends a slot early.

As a script this file is such a slot, to be killed.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402  # found by the line above
import gpu_training  # noqa: E402  # found by the line above
import machine  # noqa: E402  # found by the line above
from gpu_page import table_of_targets  # noqa: E402  # found by the line above

ONCE_HANGS = 'test -e hung || { echo $$ > hung; exec sleep 60; }; echo goes on; echo "[1]" > "$0"'


def part(name, script="true", **fields):
    """A part that is a line of sh, in which $0 is the file for its numbers and $1 are its seconds."""
    command = ["sh", "-c", script, gpu.JSON, gpu.SECONDS]
    return gpu.Part(name, fields.pop("limit_s", 20), command, [f"{name}.txt"], f"look at {name}", **fields)


def slot(root, planned, seconds=60.0, ledger=None):
    """Run what is due in a slot of its own; the ledger that it leaves, and the parts that it ran."""
    known = ledger if ledger is not None else gpu.read(root / "ledger.json")
    before = {name: dict(entry) for name, entry in known.items()}
    gpu.run_next(planned, known, root, seconds, "a card", os.environ)
    ran = [name for name, entry in known.items() if before.get(name) != entry]
    return known, sorted(ran, key=lambda name: known[name]["when"])


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder in the checkout's place."""
    for name, place in {"ROOT": "", "RESULTS": "results", "LEDGER": "results/gpu/ledger.json", "PACK": ".pack"}.items():
        monkeypatch.setattr(gpu, name, tmp_path / place)
    return tmp_path


def states(planned, ledger):
    return [gpu.state(each, ledger) for each in planned]


def made():
    return [part("first", 'echo "{}" > "$0"'), part("hangs", ONCE_HANGS), part("last")]


def test_a_ledger_fills_over_slots_of_which_one_is_killed(root):
    with gpu_killed_while_a_part_hangs(root) as ledger:
        assert states(made(), ledger) == ["fresh", "failed", "missing"]
        assert ledger["hangs"]["ending"] == "begun"
    # What was lost comes after what was not tried.
    ledger, ran = slot(root, made())
    assert (states(made(), ledger), ran) == (["fresh"] * 3, ["last", "hangs"])
    assert ledger["hangs"]["printed"] == ["goes on"]
    assert ledger["hangs"]["numbers"] == [1]
    assert gpu.read(root / "ledger.json") == ledger
    assert slot(root, made()) == (ledger, [])
    assert {file.name for file in root.iterdir()} == {"ledger.json", "parts.txt", "hung"}


@contextlib.contextmanager
def gpu_killed_while_a_part_hangs(root):
    """Kill the process group of a slot; its part is of another, as on a machine whose session is ended."""
    from ssl_core.testing.process import started_process

    with started_process([sys.executable, __file__, str(root)]):
        end = time.monotonic() + 60
        while not ((hung := root / "hung").exists() and hung.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
    os.kill(int(hung.read_text()), signal.SIGKILL)
    yield gpu.read(root / "ledger.json")


def test_a_part_is_stale_when_a_file_that_it_depends_on_is_another(root):
    planned = [part("a"), part("b")]
    (root / "a.txt").write_text("1")
    ledger, _ = slot(root, planned)
    (root / "a.txt").write_text("2")
    assert states(planned, ledger) == ["stale", "fresh"]
    assert slot(root, planned)[1] == ["a"]
    (root / "b.txt").write_text("new")
    assert states(planned, gpu.read(root / "ledger.json")) == ["fresh", "stale"]


def test_a_part_that_fails_says_where_to_look_and_comes_last_until_it_is_changed(root, capsys):
    planned = [part("a", "echo why; exit 3"), part("b", "exit 75"), part("c")]
    ledger, ran = slot(root, planned)
    assert ran == ["a", "b", "c"]
    assert [ledger[name]["ending"] for name in ran] == ["failed with status 3", "unfinished", "finished"]
    said = capsys.readouterr().out
    assert re.search(r"^a: failed with status 3, \d s\n    look first at: look at a\nb: unfinished, \d s$", said, re.M)
    assert slot(root, planned)[1] == ["b", "a"]
    (root / "a.txt").write_text("mended")
    assert slot(root, planned)[1] == ["a", "b"]


def test_a_part_over_its_limit_is_killed_with_what_it_started_and_keeps_its_numbers(root):
    begun = 'echo "{" > "$0"; sh -c "echo \\$\\$ > child; exec sleep 60" & wait'
    planned = [part("half", begun, limit_s=1), part("whole", 'echo "{}" > "$0"; echo "|---|"; sleep 60', limit_s=1)]
    ledger, _ = slot(root, planned)
    assert [ledger[name]["ending"] for name in ("half", "whole")] == ["killed after its 1 s"] * 2
    assert [ledger[name]["numbers"] for name in ("half", "whole")] == [{}, {}]
    child = int((root / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()


def test_parts_for_which_a_file_or_time_is_missing_wait_for_another_slot(root, capsys):
    planned = [part("long", limit_s=100), part("lacks", lacks="no tool"), part("short", limit_s=3)]
    planned.append(part("rest", "echo $1", limit_s=20, takes_what_is_left=True))
    ledger, ran = slot(root, planned, seconds=90)
    assert ran == ["short", "rest"]
    # Less what it needs to end.
    assert 20 < float(ledger["rest"]["printed"][0]) < 75
    said = capsys.readouterr().out
    assert "long (missing) waits: it may take 100 s" in said
    assert "lacks (missing) waits: no tool" in said


def entry(name, when, **fields):
    plain = {"ending": "finished", "fingerprint": "", "card": "a card", "commit": "", "printed": [], "numbers": {}}
    return {"part": name, "when": when, "seconds": 1, **plain, **fields}


def test_results_are_taken_into_the_repository_once_and_the_page_keeps_its_prose(root, monkeypatch):
    out, page = root / "out", root / "results/gpu.md"
    monkeypatch.setattr(gpu, "commit", lambda: "abc")
    planned = [part("a"), part("b")]
    gpu.write(page, f"before\n{gpu.TABLES[0]}\nold\n{gpu.TABLES[1]}\n\nafter\n")
    old = {name: entry(name, "2026-01-02", commit="old", numbers={"of": name}) for name in ("a", "b", "gone")}
    old["b"]["fingerprint"] = gpu.fingerprint(planned[1])
    gpu.write(gpu.LEDGER, json.dumps(old))
    brought = {"a": entry("a", "2026-01-03", fingerprint=gpu.fingerprint(planned[0]), printed=["| x |"])}
    gpu.write(out / "ledger.json", json.dumps(brought | {"b": entry("b", "2026-01-01")}))
    gpu.write(out / "run-0/piece-00000-of-00001", "weights")
    gpu.take(out, planned)
    ledger = gpu.take(out, planned)
    assert gpu.read(gpu.LEDGER) == ledger
    assert {name: each["commit"] for name, each in ledger.items()} == {"a": "abc", "b": "old", "gone": "old"}
    text = page.read_text()
    assert text.startswith(f"before\n{gpu.TABLES[0]}\n")
    assert text.endswith(f"{gpu.TABLES[1]}\n\nafter\n")
    assert "| a | finished | 1 | a card | abc | 2026-01-03 |" in text
    assert "old\n<" not in text
    assert "## a\n\n| x |" in gpu.LEDGER.with_name("parts.md").read_text()
    assert (gpu.PACK / "run-0/piece-00000-of-00001").read_text() == "weights"


def test_a_machine_without_git_has_no_name_of_the_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert (gpu.commit(), machine._commit()) == ("", "unknown")


@pytest.mark.parametrize(("card", "said"), [(gpu.DRY, "but of a dry run"), (None, "holds no results")])
def test_a_dry_run_and_nothing_are_no_results(root, card, said):
    gpu.write(root / "ledger.json", json.dumps({"a": entry("a", "2026", card=card)} if card else {}))
    with pytest.raises(SystemExit, match=said):
        gpu.take(root, [part("a")])


def test_targets_say_what_was_measured_and_whether_it_is_enough():
    record = {"what": "sce", "n": 512, "d": 128, "flops": 1, "peak_flops": 1}
    losses = [record | {"implementation": name, "seconds": s} for name, s in (("triton", 1e-3), ("eager", 3e-3))]
    steps = [{"method": "MoCo v2", "images_per_s": 26_000.0, "gib": 2.5, "busy": 0.9}]
    steps += [steps[0] | {"method": "SCE", "images_per_s": 20_000.0}]
    # The fastest way of a step counts; of the last, nothing but its rate was found.
    ways = [steps[0] | {"images_per_s": 20_000.0}, {"method": "MoCo v2, captured", "images_per_s": 3e4, "gib": 3.0}]
    training = {"epoch": 12.0, "images_per_s": 20_000.0}
    measured = {"losses": losses, "step-resnet18": steps, "step-vit": ways, "training": training}
    rows = table_of_targets({name: entry(name, "", numbers=numbers) for name, numbers in measured.items()})
    text = "\n".join(rows)
    assert "| losses | at least 4.00x | 3.00x (n 512, d 128, triton) | no |" in text
    assert "| at least 25,000 images/s | 26,000 images/s (as it is, 2.5 GiB, busy 90 %) | yes |" in text
    assert "| at least 2,400 images/s | 30,000 images/s (captured, 3.0 GiB) | yes |" in text
    assert "| training | at most 7.00 min | 8.33 min (12 epochs done) | no |" in text
    assert "| attention | at least 1.10x | not yet run |  |" in text


def test_the_page_follows_from_the_ledger(tmp_path):
    text = (gpu.RESULTS / "gpu.md").read_text()
    assert gpu.page(text, gpu.parts(tmp_path, dry=False), gpu.read(gpu.LEDGER)) == text


@pytest.mark.parametrize("dry", [False, True])
def test_every_part_names_files_that_are_there(dry, tmp_path):
    for each in gpu.parts(tmp_path, dry):
        assert [word for word in each.command if word.endswith(".py") and not (ROOT / word).exists()] == []
        assert [pattern for pattern in each.measures if not any(ROOT.glob(pattern))] == []


def test_the_calls_that_the_pack_prints_are_of_options_that_are_there():
    calls = re.findall(r"python3? (benchmarks/\w+\.py) (--.*)", (ROOT / "benchmarks/gpu_pack.sh").read_text())
    assert len(calls) == 2
    for script, options in calls:
        assert {*re.findall(r"--\w+", options)} <= {*re.findall(r'add_argument\("(--\w+)', (ROOT / script).read_text())}


def test_packs_of_which_one_is_missing_are_incomplete(root):
    assert gpu.incomplete(["train-*"]) == "0 of train-* in .pack are not all"
    for index in range(2):
        gpu.write(gpu.PACK / f"{index}/train-0000{index}-of-00002.parquet", "")
        assert (gpu.incomplete(["train-*"]) is None) == (index == 1)


def test_a_run_in_pieces_is_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_training, "PIECE", 4096)
    run, packs, again = tmp_path / "run", tmp_path / "packs", tmp_path / "again"
    gpu.write(run / "checkpoints/last.pt", "x" * 60_000)
    gpu_training.split(run, packs)
    gpu.write(run / "checkpoints/last.pt", "x" * 20_000)
    gpu_training.split(run, packs)
    assert sorted(folder.name for folder in packs.iterdir()) == ["run-0", "run-1", "run-2"]
    assert all(len(list(folder.iterdir())) <= 3 for folder in packs.iterdir())
    gpu_training.join(packs, again)
    assert (again / "checkpoints/last.pt").read_text() == "x" * 20_000
    gpu_training.join(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


if __name__ == "__main__":
    gpu.ROOT = Path(sys.argv[1])
    gpu.run_next(made(), {}, gpu.ROOT, 60, "a card", os.environ)
