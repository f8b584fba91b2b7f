"""Large tensors of a script are not asked of the system each time."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from utils.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def fill():
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(60):
    before = faults()
    fill()
    counts.append(faults() - before)
print(sorted(counts)[30])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is changed")
def test_pages_of_freed_tensors_are_used_again() -> None:
    run = [subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True) for how in ("", "kept")]
    default, kept = (int(one.stdout) for one in run)
    # The median: the heap grows for some rounds until freed pieces fit together. A huge page counts as one fault.
    assert kept < default / 4
