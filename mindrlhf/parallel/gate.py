"""MindSpore's semi-auto parallel passes, opened to a machine without devices, in this process alone.

The passes name the group of all workers after the device: they compare the device's name with "Ascend" and "Davinci",
then with "GPU", and know no other. The few literals "GPU" that stand beside "nccl_world_group" in the library's
read-only data are that comparison; each becomes "CPU" in this process's private copy of the page. Nothing on the disk
changes, and a version that was not looked at is refused.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass

from mindrlhf.runtime.errors import UserError

LIBRARY = "libmindspore_frontend.so"
# Version of MindSpore -> how many comparisons there are.
PROVEN = {"2.9.0": 4}
_COMPARED = re.compile(rb"\0nccl_world_group\0+hccl_world_group\0+(?:[a-z_]+\0+)?Davinci\0Ascend\0([GC]PU)\0CPU\0")
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s+(.*)")
_WRITABLE = 2  # PROT_WRITE


@dataclass(frozen=True)
class _Segment:
    start: int
    stop: int
    rights: str

    @property
    def protection(self) -> int:
        return sum(bit for letter, bit in (("r", 1), ("w", 2), ("x", 4)) if letter in self.rights)


def open_gate() -> int:
    """Let the passes run on this machine; the number of places changed, 0 where they are open already.

    Raises `UserError` for a version of MindSpore on which this was not proven.
    """
    import mindspore

    version = mindspore.__version__
    if version not in PROVEN:
        known = ", ".join(PROVEN)
        raise UserError(
            f"a dry run was proven on MindSpore {known}, and this is {version}; install that, or run on Ascend"
        )
    segments = _segments()
    closed, opened = [], 0
    for segment in segments:
        if "r" not in segment.rights:
            continue
        data = ctypes.string_at(segment.start, segment.stop - segment.start)
        for match in _COMPARED.finditer(data):
            if match[1] == b"GPU":
                closed.append((segment, segment.start + match.start(1)))
            else:
                opened += 1
    if len(closed) + opened != PROVEN[version]:
        raise UserError(
            f"a dry run knows {PROVEN[version]} places in MindSpore {version} and finds {len(closed) + opened}: "
            f"it is another build; install mindspore=={version} from the package index"
        )
    for segment, address in closed:
        _write(segment, address, b"CPU")
    return len(closed)


def _segments() -> list[_Segment]:
    found = []
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            match = _MAPPED.match(line)
            if match and match[4].endswith(f"/{LIBRARY}"):
                found.append(_Segment(int(match[1], 16), int(match[2], 16), match[3]))
    return found


def _write(segment: _Segment, address: int, data: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = os.sysconf("SC_PAGESIZE")
    start = address // page * page
    length = -(-(address + len(data) - start) // page) * page
    for protection in (segment.protection | _WRITABLE, segment.protection):
        if libc.mprotect(start, length, protection):
            raise OSError(ctypes.get_errno(), f"mprotect of {LIBRARY}")
        if protection & _WRITABLE:
            ctypes.memmove(address, data, len(data))
