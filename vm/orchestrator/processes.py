# SPDX-License-Identifier: Apache-2.0
"""Child processes that end with this one, however it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO, Sequence


def start_dependent(
    command: Sequence[str], pass_fds: Sequence[int], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts it in a session of its own (a terminal's Ctrl-C is for us alone); the kernel kills it when this thread ends."""
    return subprocess.Popen(  # pylint: disable=consider-using-with
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        pass_fds=tuple(pass_fds),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def processor_seconds(pid: int) -> float:
    """What a running process has used. 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100
