"""Compilation of all ops and losses, in one process of its own because Dynamo rejects the jaxtyping hook."""

import sys
from pathlib import Path

import pytest

from ssl_core.testing import finished_process


@pytest.mark.nightly
def test_ops_and_losses_compile_without_graph_breaks_and_agree_with_eager():
    script = Path(__file__).with_name("compiled_ops.py")
    done = finished_process([sys.executable, str(script)])
    assert done.returncode == 0, done.stderr
