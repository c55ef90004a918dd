# SPDX-License-Identifier: Apache-2.0
"""`scripts/vm shell`: this terminal on a program in a guest."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import sys
import termios
import tty
from typing import Any

from . import control, frames
from .errors import EXIT_GUEST_LOST
from .frames import Type


async def attach(run: str, node: int, arguments: list[str]) -> int:
    """Runs the program with our input and output; its exit status."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    environment = {"TERM": os.environ.get("TERM", "dumb")} if terminal else {}
    request: dict[str, Any] = {
        "do": "run", "node": node, "arguments": arguments, "folder": os.getcwd(), "terminal": terminal,
        "environment": environment,
    }  # fmt: skip
    _, reader, writer = await control.connect(run, request)
    saved = termios.tcgetattr(0) if terminal else None
    loop = asyncio.get_running_loop()

    def send_input() -> None:
        data = os.read(0, 65536)
        writer.write(frames.encode(0, Type.INPUT, data))
        if not data:
            loop.remove_reader(0)

    def send_size() -> None:
        columns, rows = shutil.get_terminal_size()
        writer.write(frames.encode(0, Type.SIZE, struct.pack("<HH", rows, columns)))

    try:
        if saved:
            tty.setraw(0)
            loop.add_signal_handler(signal.SIGWINCH, send_size)
            send_size()
        try:
            loop.add_reader(0, send_input)
        except PermissionError:  # a file, or /dev/null: always ready
            send_all(writer)
        return await _show(reader)
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        writer.close()


def send_all(writer: asyncio.StreamWriter) -> None:
    """Standard input that cannot be waited for, at once."""
    while data := os.read(0, 65536):
        writer.write(frames.encode(0, Type.INPUT, data))
    writer.write(frames.encode(0, Type.INPUT))


async def _show(reader: asyncio.StreamReader) -> int:
    try:
        while True:
            frame = await frames.read(reader)
            if frame.type == Type.EXIT:
                return int.from_bytes(frame.payload, "little")
            stream = sys.stderr if frame.type == Type.ERRORS else sys.stdout
            stream.buffer.write(frame.payload)
            stream.flush()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return EXIT_GUEST_LOST
