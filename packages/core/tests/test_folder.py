"""The directory of a run: one process at a time, none of the same name, and nothing left of what is refused."""

import multiprocessing
import os
import signal
import socket
import time

import pytest

from ssl_core import folder as module
from ssl_core.folder import LAST, check_writable, claimed, find_run, last_saved_ns


def claim(path, name="run"):
    return claimed(path, name, saved_ns=last_saved_ns(path))


def test_a_second_process_is_refused_by_the_name_of_the_first_and_changes_nothing(tmp_path):
    run = tmp_path / "run"
    with claim(run):
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}
        with (
            pytest.raises(OSError, match=rf"run is in use by process {os.getpid()} on \S+; wait for its end"),
            claim(run),
        ):
            pass
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()} == before
    with claim(run):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_holds_nothing_though_its_workers_live_on(tmp_path):
    run = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def hold():
        with claim(run):
            worker = context.Process(target=time.sleep, args=(60,))
            worker.start()
            there.send(worker.pid)
            time.sleep(60)

    holder = context.Process(target=hold)
    holder.start()
    worker = here.recv()
    with pytest.raises(OSError, match=f"in use by process {holder.pid} on "), claim(run):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with claim(run):
        pass
    os.kill(worker, signal.SIGKILL)  # it was there all along


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "fcntl", None)
    with claim(tmp_path / "run"):
        assert "run cannot be locked (this system has no such locks)" in caplog.text


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A lock that a machine of the same name left, on a file system that keeps locks to one machine."""
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    lock.write_text(f"process 7 on {socket.gethostname()}\n{socket.gethostname()} another boot\n")
    monkeypatch.setattr(module, "_DEAD_AFTER_S", 0.3)
    monkeypatch.setattr(module, "_TOUCHED_EVERY_S", 0.02)
    return lock


def test_a_lock_that_a_live_run_on_another_machine_touches_is_respected(tmp_path, elsewhere):
    with (
        module._touched(elsewhere),
        pytest.raises(OSError, match=r"run is in use by process 7 on \S+; wait for its end"),
        claim(tmp_path / "run"),
    ):
        pass
    assert "another boot" in elsewhere.read_text()


def test_a_lock_that_a_dead_run_on_another_machine_has_left_is_taken_over_and_said(tmp_path, elsewhere, caplog):
    with claim(tmp_path / "run"):
        assert "run belongs to process 7 on" in caplog.text
        assert f"process {os.getpid()} on " in elsewhere.read_text()
        before = elsewhere.stat().st_mtime_ns
        time.sleep(0.1)
        assert elsewhere.stat().st_mtime_ns > before
    assert not elsewhere.read_text()
    caplog.clear()
    with claim(tmp_path / "run"):
        assert not caplog.text


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.time, "strftime", lambda form: "noon")
    with claim(None, "a") as first, claim(None, "a") as second, claim(None, "b") as third:
        assert [str(path) for path in (first, second, third)] == ["runs/a-noon", "runs/a-noon-2", "runs/b-noon"]


@pytest.mark.parametrize("there", [(), ("runs",), ("runs", "runs/x"), ("runs", "runs/x", "runs/x/mine")])
def test_what_was_made_for_a_run_that_wrote_nothing_is_gone(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    for name in there:
        (tmp_path / name).mkdir()
    for path in (tmp_path / "runs" / "x", None):
        with pytest.raises(KeyboardInterrupt), claim(path):
            raise KeyboardInterrupt
        assert {str(left.relative_to(tmp_path)) for left in tmp_path.rglob("*")} == set(there)
    with pytest.raises(OSError, match="full"), claim(tmp_path / "runs" / "x") as run:
        raise OSError(f"full after {(run / 'config.yaml').write_text('')} bytes")
    assert (tmp_path / "runs" / "x" / "config.yaml").exists()


def test_a_run_that_another_process_continued_after_it_was_read_is_refused(tmp_path):
    (tmp_path / LAST).parent.mkdir()
    read = last_saved_ns(tmp_path)
    (tmp_path / LAST).touch()
    late = claimed(tmp_path, "run", saved_ns=read)
    with pytest.raises(OSError, match=r"another process has trained in .* meanwhile: start again"), late:
        pass


def test_to_look_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the folder .*file/b \(.*Not a directory"):
        check_writable(tmp_path / "file" / "b")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two run directories with checkpoints, a third that has lost its own, and the home folder that they are in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name / LAST).parent.mkdir(parents=True)
        (tmp_path / name / LAST).touch()
    (tmp_path / "a" / "checkpoints" / "epoch_0001.pt").touch()
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "backbone.safetensors").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("out", "resume", "expected"),
    [
        (None, None, (None, None)),
        ("~/new", None, ("new", None)),
        ("~/a", None, ("a", LAST)),
        (None, "~/a", ("a", LAST)),
        ("~/b/../a", "~/a", ("a", LAST)),
        ("~/new", "~/a", ("new", LAST)),
        (None, "~/a/checkpoints/epoch_0001.pt", ("a", "checkpoints/epoch_0001.pt")),
        ("~/new", "~/a/checkpoints/epoch_0001.pt", ("new", "checkpoints/epoch_0001.pt")),
    ],
)
def test_a_run_continues_where_out_or_resume_says(runs, out, resume, expected):
    folder, checkpoint = expected
    assert find_run(out, resume) == (folder and runs / folder, checkpoint and runs / "a" / checkpoint)


@pytest.mark.parametrize(
    ("out", "resume", "message"),
    [
        ("~/b", "~/a", "b holds a run already: continue it with --resume"),
        ("~/lost", "~/a", "lost holds a run's backbone without its checkpoint"),
        ("~/lost", None, "lost holds a run's backbone without its checkpoint"),
        ("s3://runs/b", None, "s3://runs/b is an address, and a run is in a folder of this machine"),
        (None, "s3://runs/b", "s3://runs/b is an address"),
        ("https://host/b", None, "https://host/b is an address"),
        ("~/mine", None, "mine/config.yaml is of no run and would be overwritten: choose another --out"),
    ],
)
def test_another_run_is_not_written_over(runs, out, resume, message):
    with pytest.raises(ValueError, match=message):
        find_run(out, resume)
