"""What the allocator does with freed memory, seen by the page faults of a process of its own."""

import platform
import sys

import pytest

from ssl_core.testing import finished_process

STEPS = """
import resource, sys
if sys.argv[1] == "keep":
    from ssl_core.allocator import keep_freed_memory
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(40):
    b"1" * 2**26  # beyond the 32 MiB up to which glibc would learn
print(faults() - before)
"""


def page_faults(how):
    return int(finished_process([sys.executable, "-c", STEPS, how]).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the options")
@pytest.mark.slow
def test_memory_that_is_kept_is_not_paid_for_again():
    # The heap grows for the first few of the forty blocks, since a freed one does not always fit the next.
    assert page_faults("keep") < page_faults("return") / 2
