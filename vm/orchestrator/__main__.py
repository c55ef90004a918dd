# SPDX-License-Identifier: Apache-2.0
"""scripts/vm's main program: python3 -m vm.orchestrator PROGRAMS ARGUMENT..."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Coroutine

from . import control, keep, terminal
from .errors import EXIT_DIRTY, EXIT_INTERRUPTED, VmError
from .options import parse
from .possible import why_not
from .report import new_folder, say
from .run import CACHE, Run, run_command


async def _interruptible(work: Coroutine[None, None, int]) -> int:
    """Runs it; SIGINT, SIGTERM and SIGHUP cancel it, and what it has started is ended."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        say("interrupted")
        return EXIT_INTERRUPTED


async def _run(options: argparse.Namespace, programs: Path, folder: Path, done: keep.Done | None = None) -> int:
    return await run_command(Run(options, programs, folder), done)


async def _shell(options: argparse.Namespace, programs: Path) -> int:
    arguments = options.command or ["bash", "-l"]
    if options.run_name or control.running():
        return await terminal.attach(control.choose(options.run_name), options.node, arguments)
    options.command, options.keep = [], True
    folder = new_folder(CACHE / "runs", options.out)
    ready = asyncio.Event()
    run = asyncio.ensure_future(run_command(Run(options, programs, folder), lambda status: ready.set()))
    waiting = asyncio.ensure_future(ready.wait())
    try:
        await asyncio.wait([run, waiting], return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            return run.result()
        status = await terminal.attach(folder.name, options.node, arguments)
        await control.connect(folder.name, {"do": "down"})
        return status or await run
    except asyncio.CancelledError:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        raise
    finally:
        waiting.cancel()


async def _ask(options: argparse.Namespace) -> int:
    if options.do == "status":
        for name in control.running():
            answer, _, _ = await control.connect(name, {"do": "status"})
            guests = ", ".join(f"{guest} {state}" for guest, state in answer["guests"].items())
            print(f"{name}: {guests}; {answer['folder']}")
        return 0
    name = control.choose(options.run_name)
    if options.do == "fault":
        answer, _, _ = await control.connect(name, {"do": "fault", "words": options.words})
        print(answer)
        return 0
    answer, _, _ = await control.connect(name, {"do": "down"})
    for problem in answer["problems"]:
        say(f"NOT CLEAN: {problem}")
    return EXIT_DIRTY if answer["problems"] else 0


def main() -> int:
    """The exit status."""
    programs, arguments = Path(sys.argv[1]).resolve(), sys.argv[2:]
    try:
        options = parse(arguments)
        if options.do in ("run", "shell", "check") and (reason := why_not()):
            raise VmError(f"guests cannot run here: {reason}")
        if options.do == "check":
            return 0
        if options.do == "run":
            folder = new_folder(CACHE / "runs", options.out)
            if options.keep:
                return keep.in_background(
                    folder, lambda done: asyncio.run(_interruptible(_run(options, programs, folder, done)))
                )
            return asyncio.run(_interruptible(_run(options, programs, folder)))
        return asyncio.run(_interruptible(_shell(options, programs) if options.do == "shell" else _ask(options)))
    except VmError as error:
        say(str(error))
        return error.status


sys.exit(main())
