# SPDX-License-Identifier: Apache-2.0
"""The private network: vm-switch and one pair of datagram sockets for each guest. No address outside, no socket in any folder."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from .errors import VmError
from .processes import start_dependent

NETWORK = "10.77.0."


def address_of(node: int) -> str:
    """Of a guest, counted from 1."""
    return f"{NETWORK}{node}"


class Switch:
    """A running vm-switch."""

    def __init__(self, program: Path, ports: int, log: Path) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(ports)]
        ours = [control, *(ours for ours, _ in pairs)]
        self.guest_ends = [guest for _, guest in pairs]
        fds = [end.fileno() for end in ours]
        with open(log, "wb") as output:
            self.process: subprocess.Popen[bytes] = start_dependent([str(program), *map(str, fds)], fds, output)
        for end in ours:
            end.close()
        self._control.settimeout(10)

    def command(self, line: str) -> str:
        """A line of the switch's control protocol and its answer (see vm/switch.cc). Raises VmError when it is gone."""
        try:
            self._control.sendall(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                more = self._control.recv(4096)
                if not more:
                    raise VmError("the network switch has ended")
                answer += more
        except OSError as error:
            raise VmError(f"the network switch does not answer: {error}") from error
        return answer.decode().rstrip("\n")

    def stop(self) -> None:
        """Ends it."""
        self._control.close()
        self.process.kill()
        self.process.wait()
