# SPDX-License-Identifier: Apache-2.0
"""Whether guests can run on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "setpriv": "util-linux",
    "rdma": "iproute2",
    "ps": "procps",
}


def why_not() -> str | None:
    """None if they can; else the reason."""
    if platform.machine() != "x86_64":
        return f"guests are x86_64, this machine is {platform.machine()}"
    if os.getuid() != 0:
        return "the guests' root is this machine's, so scripts/vm must be run as root"
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            return f"{program} is missing: apt-get install {package}"
    linked = subprocess.run(["ldd", shutil.which("busybox") or ""], capture_output=True, text=True, check=False)
    if "not a dynamic executable" not in linked.stdout + linked.stderr:
        return "busybox is not static: apt-get install busybox-static"
    accelerators = subprocess.run(["qemu-system-x86_64", "-accel", "help"], capture_output=True, text=True, check=False)
    if "tcg" not in accelerators.stdout:
        return "QEMU cannot emulate (no tcg)"
    return None
