import os
import signal
import sys
from subprocess import run

import pytest

from ssl_core.console import console


def interrupt(times, left):
    with console("tool"):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for _ in range(times - 1):  # while what was begun is left
                os.kill(os.getpid(), signal.SIGINT)
            left.append(times)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_ctrl_c_ends_a_command_in_one_line_however_often_it_comes(times, capsys):
    left = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            interrupt(times, left)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert left == [times]
    assert capsys.readouterr().err == "tool: interrupted\n"


def test_ctrl_c_that_a_shell_has_turned_off_stays_off():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with console("tool"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def shell(body, redirection, pipe=""):
    """Output, and errors with the status, of a Python program with the streams that a shell gives it."""
    code = f"import os, sys\nfrom ssl_core.console import console, lasting\n{body}"
    command = f'{{ "$0" -c "$1" {redirection}; echo "exit $?" >&2; }} {pipe}'
    done = run(["sh", "-c", command, sys.executable, code], capture_output=True, text=True)
    return done.stdout, done.stderr


OPENS_A_FILE = """
with console("tool"):
    with open(os.devnull) as file:
        assert file.fileno() > 2, file
    print("out")
    print("err", file=sys.stderr)
    assert sys.stdin.read() == ""
"""


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("0<&-", ("out\n", "err\nexit 0\n")),
        ("1>&- </dev/null", ("", "err\nexit 0\n")),
        ("2>&- </dev/null", ("out\n", "exit 0\n")),
        ("0<&- 1>&- 2>&-", ("", "exit 0\n")),
    ],
)
def test_a_closed_stream_is_nothing_and_no_place_for_the_next_file(redirection, expected):
    assert shell(OPENS_A_FILE, redirection) == expected


PRINTS = """
with console("tool"):
    print("x" * {characters})
"""


# Waits until the other end of the pipe is closed, which may begin after this does.
UNREAD = """
import select
output = select.poll()
output.register(1, 0)
output.poll(60_000)
"""


@pytest.mark.parametrize("characters", [10, 1_000_000])  # less and more than is held back
def test_output_that_cannot_be_written_is_an_error_and_output_that_nobody_reads_a_quiet_end(characters):
    body = PRINTS.format(characters=characters)
    told = "tool: error: standard output: No space left on device\nexit 1\n"
    assert shell(body, "> /dev/full") == ("", told)
    assert shell(body, "> /dev/full 2>&1") == ("", "exit 1\n")
    assert shell(UNREAD + body, "", "| true") == ("", "exit 141\n")


RUNS_LONG = """
with console("tool"), lasting("stdout", "stderr"):
    for epoch in range(3):
        print("x" * 1_000_000, flush=True)
    print("bar", file=sys.stderr)
"""
WITHOUT = "the run goes on without it\nbar\nexit 0\n"


@pytest.mark.parametrize(
    ("redirection", "pipe", "expected"),
    [
        ("> /dev/full", "", ("", f"standard output: No space left on device; {WITHOUT}")),
        ("2> /dev/full > /dev/null", "", ("", "exit 0\n")),
        ("> /dev/full 2>&1", "", ("", "exit 0\n")),
        ("1>&-", "", ("", "bar\nexit 0\n")),
        ("", "| head -c 5", ("xxxxx", f"standard output: Broken pipe; {WITHOUT}")),
        ("2>&1", "| head -c 5", ("xxxxx", "exit 0\n")),
    ],
)
def test_a_long_run_goes_on_without_its_output(redirection, pipe, expected):
    assert shell(RUNS_LONG, redirection, pipe) == expected
