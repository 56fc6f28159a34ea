"""Fixtures and switches that all packages' tests share."""

import os
import sys
from importlib.util import find_spec

# Before torch is imported, and for the processes that tests start: the tensors here are too small for threads to
# pay, and on a busy machine waiting threads cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if find_spec("hypothesis"):  # not every package's tests need it
    from hypothesis import settings

    # The same examples every time, for as long as hypothesis is the same; constraints.txt sees to that.
    settings.register_profile("repeatable", max_examples=60, derandomize=True, deadline=None, database=None)
    # nox -s fuzz
    settings.register_profile("random", max_examples=300, deadline=None, database=None, print_blob=True)
    settings.load_profile("repeatable")

# Needs the build back-end, which test environments do not have.
collect_ignore_glob = ["packages/*/hatch_build.py", "packages/*/build/*"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require-gpu`` and ``--nightly``."""
    parser.addoption("--require-gpu", action="store_true", help="fail instead of skipping tests marked gpu")
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly as well")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what Triton compiles beside the checkout, since a home may be read-only; a seed means random examples."""
    if config.getoption("--hypothesis-seed", None) is not None and not config.getoption("--hypothesis-profile", None):
        settings.load_profile("random")
    if "TRITON_CACHE_DIR" not in os.environ and hasattr(config, "cache"):
        os.environ["TRITON_CACHE_DIR"] = str(config.cache.mkdir("triton"))


@pytest.hookimpl(trylast=True)  # after those that add markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked nightly out, and skip those marked gpu where there is none, with the reason in the summary."""
    if not config.getoption("--nightly"):
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
    if torch.cuda.is_available() or config.getoption("--require-gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not ask for a report writes none, though the extra is there: a page takes seconds."""
    if (pretrain := sys.modules.get("ssl_core.pretrain")) is not None:
        monkeypatch.setattr(pretrain, "has_report", lambda: False)
