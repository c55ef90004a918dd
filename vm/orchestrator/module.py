# SPDX-License-Identifier: Apache-2.0
"""distfuse.ko in the guests: which file, built for their kernel if need be; loaded before the cluster, unloaded after it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from .errors import VmError
from .guest import Guest
from .kernel import Kernel, build_tree

SOURCE = Path(__file__).resolve().parents[2]
UNLOAD_SECONDS = 60


def module_of(kernel: Kernel, given: Path | None, programs: Path, cache: Path) -> Path:
    """The file to load. Raises VmError when it cannot be built.

    `given`, or kmod/RELEASE/distfuse.ko beside the programs. That one is made current, but for the distribution's kernel with
    DISTFUSE_BUILD, whose build is taken as it is.
    """
    if given:
        if not given.exists():
            raise VmError(f"there is no {given}")
        return given.resolve()
    folder = programs.parent / "kmod"
    path = folder / kernel.release / "distfuse.ko"
    if os.environ.get("DISTFUSE_BUILD") and not kernel.debug and path.exists():
        return path
    words = [str(SOURCE / "kmod" / "build"), "--out", str(folder), "--kernel", str(build_tree(kernel, cache))]
    built = subprocess.run(words, capture_output=True, text=True, check=False)
    if built.returncode != 0 or not path.exists():
        raise VmError(f"distfuse.ko cannot be built for {kernel.release}:\n{built.stderr.strip()}")
    return path


async def load(guests: list[Guest], path: Path) -> None:
    """Into every guest; what it needs is there since the boot. Raises VmError."""
    await asyncio.gather(*(guest.output_of(["insmod", str(path)]) for guest in guests))


async def unload(guest: Guest) -> list[str]:
    """Out of a guest; what is wrong. Raises VmError when it hangs."""
    output = bytearray()
    status = await guest.run(["rmmod", "distfuse"], lambda data, errors: output.extend(data), seconds=UNLOAD_SECONDS)
    return [f"the module cannot be unloaded: {output.decode(errors='replace').strip()}"] if status != 0 else []
