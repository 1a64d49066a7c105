"""A mount that kept its memory resident died when it gave idle request slots back to the system.

``madvise(MADV_REMOVE)`` refuses locked memory with EINVAL.
"""

import json
import subprocess
import sys

PROGRAM = """
import json, os
from fusecache.fuse.resident import make_resident
from fusecache.fuse.slots import MAX_WRITE, SlotMemory

make_resident()
memory = SlotMemory()
for slot in memory.slots[100:120]:
    slot.body[:] = b"x" * MAX_WRITE
    slot.used = True
before = os.fstat(memory.fd).st_blocks * 512
memory.trim()
after = os.fstat(memory.fd).st_blocks * 512
print(json.dumps([before - after, MAX_WRITE]))
"""


def test_idle_slots_of_a_resident_process_are_given_back() -> None:
    # In a process of its own, because memory stays locked until its end.
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    freed, payload = json.loads(result.stdout)
    assert freed == 20 * payload
