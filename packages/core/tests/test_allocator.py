"""What the allocator does with freed memory, seen by the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from ssl_core.allocator import keep_freed_memory
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


def page_faults(how):
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the options")
def test_memory_that_is_kept_is_not_paid_for_again():
    # 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB.
    assert page_faults("keep") < page_faults("return") / 4
