# SPDX-License-Identifier: Apache-2.0
"""`--keep`: the run goes on in a process of its own when COMMAND has ended. Until then it ends with us, whatever ends us."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Callable

from .errors import EXIT_SETUP
from .report import say

Done = Callable[[int], None]
_PR_SET_PDEATHSIG = 1


def in_background(folder: Path, work: Callable[[Done], int]) -> int:
    """Runs `work` in a child; returns COMMAND's status once work says it is done, or work's own if it ends before."""
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_keeper(folder, work, writing, parent))
    os.close(writing)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    text = b""
    while more := os.read(reading, 64):
        text += more
    if text:
        return int(text)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else EXIT_SETUP


def _keeper(folder: Path, work: Callable[[Done], int], writing: int, parent: int) -> int:
    os.setsid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return EXIT_SETUP

    def done(status: int) -> None:
        prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
        say(f"the guests of {folder.name} stay: scripts/vm shell, scripts/vm fault, scripts/vm down")
        log = os.open(folder / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open("/dev/null", os.O_RDONLY)
        sys.stdout.flush()
        sys.stderr.flush()
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.write(writing, str(status).encode())
        os.close(writing)

    return work(done)
