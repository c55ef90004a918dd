# SPDX-License-Identifier: Apache-2.0
"""The frames of vm/agent/frame.h, the host's side."""

from __future__ import annotations

import asyncio
import enum
import struct
from dataclasses import dataclass
from typing import Mapping, Sequence

HEADER = struct.Struct("<IBI")
MAX_FRAME = 1 << 20


class Type(enum.IntEnum):
    """Kinds of frames."""

    START = 1
    INPUT = 2
    SIGNAL = 3
    OUTPUT = 4
    ERRORS = 5
    EXIT = 6
    KERNEL = 7
    HELLO = 8
    ASK = 9
    ANSWER = 10
    SIZE = 11


@dataclass(frozen=True)
class Frame:
    """One frame, as read."""

    channel: int
    type: int
    payload: bytes


def encode(channel: int, kind: Type, payload: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return HEADER.pack(channel, kind, len(payload)) + payload


async def read(stream: asyncio.StreamReader) -> Frame:
    """The next frame. Raises IncompleteReadError at the end, ValueError for a length beyond the limit."""
    channel, kind, length = HEADER.unpack(await stream.readexactly(HEADER.size))
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    return Frame(channel, kind, await stream.readexactly(length))


def encode_job(
    arguments: Sequence[str],
    folder: str = "/",
    environment: Mapping[str, str] | None = None,
    terminal: bool = False,
    keep_input: bool = False,
) -> bytes:
    """The payload of a START frame."""
    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    texts = [folder, str(len(variables)), *variables, *arguments]
    flags = (1 if terminal else 0) | (2 if keep_input else 0)
    return bytes([flags]) + b"".join(text.encode() + b"\0" for text in texts)
