# SPDX-License-Identifier: Apache-2.0
"""What makes a run fail whatever COMMAND returned: the kernel's warnings, RDMA resources, processes and mounts that are left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import VmError
from .guest import Guest

KMEMLEAK_SECONDS = 180
_ALLOCATORS = ("kmalloc_trace", "__kmalloc", "kmem_cache_alloc", "kmem_cache_alloc_lru", "__kmalloc_node", "kmem_cache_alloc_node", "kmalloc_node_trace")
WARNING = 4  # and what is more severe has a lower level
# Reports that matter whatever their level.
REPORTS = re.compile(
    r"BUG:|WARNING:|Oops|general protection fault|Kernel panic|Call Trace|INFO: task .* blocked|possible recursive locking|"
    r"possible circular locking|inconsistent lock state|suspicious RCU usage|KASAN|KFENCE|KCSAN|UBSAN|kmemleak:.*new suspected|"
    r"soft lockup|hard LOCKUP|rcu: INFO|segfault at"
)


@dataclass(frozen=True)
class Allowed:
    """Warnings that say nothing about us: one pattern a line, its reason in the comment above it."""

    patterns: list[re.Pattern[str]]

    @classmethod
    def load(cls, path: Path) -> Allowed:
        """Reads the list. Raises VmError for a pattern without a reason."""
        patterns, reason = [], False
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                reason = True
            elif not line.strip():
                reason = False
            elif not reason:
                raise VmError(f"{path}: '{line}' has no reason above it")
            else:
                patterns.append(re.compile(line))
        return cls(patterns)

    def covers(self, text: str) -> bool:
        """Whether the list has it."""
        return any(pattern.search(text) for pattern in self.patterns)


def bad_records(records: list[str], allowed: Allowed) -> list[str]:
    """The records of /dev/kmsg ("level,number,time,flags;text") that are warnings or worse, or reports."""
    bad = []
    for record in records:
        head, _, body = record.partition(";")
        text = body.split("\n", 1)[0]
        fields = head.split(",")
        if not fields[0].isdigit():
            continue
        severe = int(fields[0]) & 7 <= WARNING or REPORTS.search(text)
        if severe and not allowed.covers(text):
            seconds = int(fields[2]) / 1e6 if len(fields) > 2 and fields[2].isdigit() else 0
            bad.append(f"[{seconds:.3f}] {text}")
    return bad


@dataclass
class State:
    """What a guest has: taken before the cluster starts, and again when it has stopped."""

    processes: dict[str, str]
    mounts: list[str]
    rdma: list[str]


async def state_of(guest: Guest) -> State:
    """Asks the guest."""
    script = (
        "ps -eo pid=,ppid=,stat=,args= --cols 1000; echo ==; cat /proc/self/mountinfo; echo ==; "
        "[ ! -e /sys/class/infiniband/rxe0 ] || { rdma resource show; rdma resource show qp; rdma resource show cm_id; }"
    )
    text = await guest.output_of(["sh", "-c", script])
    processes, mounts, rdma = text.split("\n==\n", 2)
    return State(_user_processes(processes), _user_mounts(mounts), _resources(rdma))


async def unreferenced(guest: Guest) -> list[str]:
    """What kmemleak has found, a line a place; a kernel without it: nothing. Two scans: the first takes what was just being moved."""
    script = (
        "cd /sys/kernel/debug && [ -e kmemleak ] || exit 0; sleep 6; echo scan >kmemleak; echo scan >kmemleak; "
        "cat kmemleak >/run/vm/kmemleak; cat kmemleak"
    )
    text = await guest.output_of(["sh", "-c", script], KMEMLEAK_SECONDS)
    return sorted({" < ".join(_functions(part)) for part in text.split("unreferenced object ")[1:]})


def _functions(part: str) -> list[str]:
    found = re.findall(r"\[<[0-9a-f]+>\] ([\w.]+)", part) or ["(no stack)"]
    return [name for name in found if name not in _ALLOCATORS][:4]


def _user_processes(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        pid, parent, state, arguments = line.split(None, 3)
        ours = "rdma resource show" in arguments or arguments.startswith("ps -eo")
        if pid not in ("1", "2") and parent != "2" and not ours:
            found[pid] = f"{arguments} ({state})"
    return found


def _user_mounts(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if len(after.split()) >= 2:
            found.append(f"{before.split()[4]} ({after.split()[0]})")
    return found


def _resources(text: str) -> list[str]:
    # Sequence numbers move with every packet.
    return [re.sub(r"^\d+: | [sr]q-psn \d+", "", line.strip()) for line in text.splitlines() if line.strip()]


def leftovers(before: State, after: State) -> list[str]:
    """What the second state has that the first had not."""
    found = [f"process {pid} is left: {what}" for pid, what in after.processes.items() if pid not in before.processes]
    found += [f"mount is left: {what}" for what in after.mounts if what not in before.mounts]
    found += [f"RDMA resource is left: {what}" for what in after.rdma if what not in before.rdma]
    return found
