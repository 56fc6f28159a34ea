import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gradient_of_ranks import CASES, steps

PROCESSES = 2


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "result"
    script = Path(__file__).parent / "gradient_of_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    finished = subprocess.run([*command, str(script), str(path)], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return [torch.load(f"{path}.{rank}") for rank in range(PROCESSES)]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_the_batch_give_the_gradient_of_one_with_all_of_it(of_two_processes, case):
    expected = steps(**CASES[case])
    assert expected["encoder.0.weight"].abs().max() > 1e-4, "a gradient of zero would prove nothing"
    for of_rank in of_two_processes:
        torch.testing.assert_close(of_rank[case], expected, rtol=1e-9, atol=1e-12)
