# SPDX-License-Identifier: Apache-2.0
"""Faults: of the network (vm-switch), of whole guests."""

from __future__ import annotations

from .errors import VmError
from .guest import Guest
from .network import Switch

HELP = "cut N on|off, delay N MS, drop N PERCENT, seed VALUE, stats, kill N, stop N, continue N"


class Faults:
    """What `scripts/vm fault` and, in a guest, `vm-agent ask fault` can do."""

    def __init__(self, switch: Switch, guests: list[Guest]) -> None:
        self._switch = switch
        self._guests = guests

    async def answer(self, question: str) -> str:
        """A question of a guest's program; the answer begins with "error" when it cannot be done."""
        words = question.split()
        if words[:1] != ["fault"]:
            return "error: the host knows: fault " + HELP
        try:
            return self.apply(words[1:])
        except VmError as error:
            return f"error: {error}"

    def apply(self, words: list[str]) -> str:
        """Does it; the answer for a person. Raises VmError for what is not known."""
        if words[:1] in (["kill"], ["stop"], ["continue"]):
            guest = self._guest(words[1:])
            if words[0] == "kill":
                guest.kill(told=True)
            else:
                guest.stop_or_continue(words[0] == "stop")
            return "ok"
        answer = self._switch.command(" ".join(words))
        if answer.startswith("error"):
            raise VmError(f"{answer.removeprefix('error: ')}; or kill N, stop N, continue N")
        return answer

    def heal(self) -> None:
        """Takes back what can be taken back."""
        for guest in self._guests:
            self._switch.command(f"cut {guest.number} off")
            self._switch.command(f"delay {guest.number} 0")
            self._switch.command(f"drop {guest.number} 0")
            if guest.alive:
                guest.stop_or_continue(False)

    def _guest(self, words: list[str]) -> Guest:
        number = words[0].removeprefix("node") if len(words) == 1 else ""
        if not number.isdigit() or not 1 <= int(number) <= len(self._guests):
            raise VmError(f"which guest? Expected: {HELP}, with N from 1 to {len(self._guests)}")
        guest = self._guests[int(number) - 1]
        if not guest.alive:
            raise VmError(f"{guest.name} is not running")
        return guest
