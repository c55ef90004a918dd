# SPDX-License-Identifier: Apache-2.0
"""How other programs of this machine reach a run: an abstract unix socket, which no end of ours can leave behind.

A connection carries one request, a line of JSON, and its answer, a line of JSON with `ok` or `error`. After `run` frames follow both ways
(vm/agent/frame.h, channel 0). Only processes of the same user, or root, are answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any, Protocol

from . import frames
from .errors import EXIT_USAGE, VmError
from .frames import Type
from .guest import Guest, Job

PREFIX = f"distfuse-vm-{os.getuid()}-"


class Controlled(Protocol):
    """What a run offers."""

    guests: list[Guest]

    def describe(self) -> dict[str, Any]: ...  # pylint: disable=missing-function-docstring
    def fault(self, words: list[str]) -> str: ...  # pylint: disable=missing-function-docstring
    async def down(self) -> dict[str, Any]: ...  # pylint: disable=missing-function-docstring
    def environment(self) -> dict[str, str]: ...  # pylint: disable=missing-function-docstring


class Server:
    """Answers for one run."""

    def __init__(self, run: Controlled, name: str) -> None:
        self._run = run
        self._name = name
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """From now on the run is found by `running`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind("\0" + PREFIX + self._name)
        except OSError as error:
            raise VmError(f"a run is there already in a folder named {self._name}: use another --out") from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    def stop(self) -> None:
        """No new connections."""
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", peer)[1] not in (0, os.getuid()):
                return
            await self._answer(json.loads(await reader.readline()), reader, writer)
        except (VmError, ValueError, KeyError, TypeError, IndexError) as error:
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client, or the run, has ended
        finally:
            writer.close()

    async def _answer(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        what = request["do"]
        if what == "run":
            await self._run_program(request, reader, writer)
            return
        if what == "status":
            answer: Any = self._run.describe()
        elif what == "fault":
            answer = self._run.fault(request["words"])
        elif what == "down":
            answer = await self._run.down()
        else:
            raise VmError(f"unknown request {what}")
        writer.write(json.dumps({"ok": answer}).encode() + b"\n")
        await writer.drain()

    async def _run_program(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number = int(request["node"])
        if not 1 <= number <= len(self._run.guests):
            raise VmError(f"there is no guest {number}: guests are 1 to {len(self._run.guests)}")
        guest = self._run.guests[number - 1]

        def show(data: bytes, errors: bool) -> None:
            writer.write(frames.encode(0, Type.ERRORS if errors else Type.OUTPUT, data))

        environment = {**self._run.environment(), **request["environment"]}
        channel, job = guest.launch(
            request["arguments"], show, request["folder"], environment, request["terminal"], True
        )
        writer.write(b'{"ok": null}\n')
        forward = asyncio.ensure_future(_forward(reader, guest, channel, job))
        try:
            status = await job.ended
            writer.write(frames.encode(0, Type.EXIT, status.to_bytes(4, "little")))
            await writer.drain()
        except VmError as error:
            writer.write(frames.encode(0, Type.ERRORS, f"\r\nvm: {error}\r\n".encode()))
        finally:
            forward.cancel()


async def _forward(reader: asyncio.StreamReader, guest: Guest, channel: int, job: Job) -> None:
    """What the client sends to the program; its end is the program's."""
    try:
        while True:
            frame = await frames.read(reader)
            if frame.type in (Type.INPUT, Type.SIZE, Type.SIGNAL):
                guest.send(channel, Type(frame.type), frame.payload)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        if not job.ended.done():
            guest.send(channel, Type.SIGNAL, b"\x01")  # SIGHUP


def running() -> list[str]:
    """The names of this user's runs."""
    text = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    return sorted(set(re.findall(rf" @{re.escape(PREFIX)}(\S+)$", text, re.MULTILINE)))


def choose(name: str | None) -> str:
    """The run that is meant. Raises VmError when there is none, or several and no name."""
    names = running()
    if name:
        if name not in names:
            raise VmError(f"no run is named {name}; there are: {', '.join(names) or 'none'}", EXIT_USAGE)
        return name
    if not names:
        raise VmError("no run is there: start one with scripts/vm run --keep", EXIT_USAGE)
    if len(names) > 1:
        raise VmError(f"several runs are there; give --run with one of {', '.join(names)}", EXIT_USAGE)
    return names[0]


async def connect(
    name: str, request: dict[str, Any]
) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request; what `ok` says, and the connection. Raises VmError for an error or a run that has ended."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect("\0" + PREFIX + name)
    except OSError as error:
        raise VmError(f"the run {name} has ended") from error
    reader, writer = await asyncio.open_connection(sock=client)
    writer.write(json.dumps(request).encode() + b"\n")
    line = await reader.readline()
    if not line:
        raise VmError(f"the run {name} has ended")
    answer = json.loads(line)
    if "error" in answer:
        raise VmError(answer["error"], EXIT_USAGE)
    return answer["ok"], reader, writer
