from pathlib import Path

import pytest

from ssl_core.testing import check_ranks


@pytest.mark.nightly
def test_the_cases_that_train_otherwise_in_two_processes_are_named_and_no_others(tmp_path):
    with pytest.raises(AssertionError, match="do not train as one") as failed:
        check_ranks(Path(__file__).with_name("broken_ranks.py"), tmp_path)
    lines = str(failed.value).splitlines()[1:]
    assert {line.partition(":")[0] for line in lines} == {"local keys", "local negatives", "sum", "nan"}
    for rank in (0, 1):
        # Two steps of 8 keys, or of the 4 that one process has.
        assert f"local keys: queue.cursor of process {rank} differs by 8.0e+00" in lines
        assert f"nan: queue.keys of process {rank} differs by nan" in lines
        assert any(line.startswith(f"sum: gradient of encoder.1.weight of process {rank} ") for line in lines)
