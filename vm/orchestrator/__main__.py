# SPDX-License-Identifier: Apache-2.0
"""scripts/vm's main program: python3 -m vm.orchestrator PROGRAMS ARGUMENT..., in the sources' root by PYTHONPATH."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from .errors import EXIT_INTERRUPTED, EXIT_USAGE, VmError
from .options import parse
from .report import new_folder, say
from .run import CACHE, run_command


async def _interruptible(work: object) -> int:
    """Runs it; SIGINT, SIGTERM and SIGHUP cancel it, and what it has started is ended."""
    task = asyncio.ensure_future(work)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        say("interrupted")
        return EXIT_INTERRUPTED


def main() -> int:
    """The exit status."""
    programs, arguments = Path(sys.argv[1]).resolve(), sys.argv[2:]
    try:
        options = parse(arguments)
        if options.do == "run":
            folder = new_folder(CACHE / "runs", options.out)
            return asyncio.run(_interruptible(run_command(options, programs, folder)))
        raise VmError(f"{options.do} is not there yet", EXIT_USAGE)
    except VmError as error:
        say(str(error))
        return error.status


sys.exit(main())
