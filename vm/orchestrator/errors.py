# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, by exit status. COMMAND's own status is passed on; these are chosen so that programs rarely use them."""

from __future__ import annotations

EXIT_USAGE = 2  # the command line, or what is asked for is not there
EXIT_DIRTY = 90  # COMMAND ran, but the guests were not clean: warnings, leaks, leftovers
EXIT_TIMEOUT = 91  # COMMAND or a guest hung and was ended
EXIT_SETUP = 92  # guests or cluster could not be started
EXIT_GUEST_LOST = 93  # a guest died while it was needed, without being told to
EXIT_INTERRUPTED = 130


class VmError(Exception):
    """A failure with the exit status it leads to; its text is for a person."""

    def __init__(self, message: str, status: int = EXIT_SETUP) -> None:
        super().__init__(message)
        self.status = status


class GuestLost(VmError):
    """A guest ended while something of it was awaited."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_GUEST_LOST)
