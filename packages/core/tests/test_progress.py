import sys

import pytest

from ssl_core.progress import progress_bar


@pytest.mark.parametrize(("is_terminal", "most"), [(False, 2), (True, 400)])
def test_a_file_gets_a_line_at_the_beginning_and_the_end_of_what_is_short(is_terminal, most, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    clock = iter(range(10**6))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock) / 100)  # a reading of the clock takes 10 ms
    with progress_bar(1000, "img") as bar:
        for _ in range(1000):
            bar.update()
    lines = capsys.readouterr().err.count("\r")
    assert min(most, 10) <= lines <= most
