# SPDX-License-Identifier: Apache-2.0
"""The DistFUSE cluster in the guests.

All daemons on the first guest: `distfuse up`, so that `distfuse status --root /cluster` and `restart` work there. Spread: the same
cluster file, with storageds started one by one. Mounts of the other guests are clients of that file.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
from pathlib import Path

from .errors import VmError
from .guest import Guest

ROOT = "/cluster"
CONFIG = "/run/vm/cluster.toml"  # on every guest
FIRST_PORT = 15000


class Cluster:
    """lockd, storageds and mounts."""

    def __init__(self, guests: list[Guest], programs: Path, options: argparse.Namespace) -> None:
        self._guests = guests
        self._programs = programs
        self._options = options

    def mounts(self) -> list[str]:
        """Of each guest."""
        return [f"/mnt/distfuse/{number}" for number in range(self._options.mounts)]

    async def start(self) -> None:
        """Returns when every mount is usable. Raises VmError with what failed."""
        await asyncio.gather(*(guest.output_of(["mkdir", "-p", *self.mounts()]) for guest in self._guests))
        if self._options.spread:
            await self._start_spread()
            await self._mount(self._guests)
        else:
            await self._up()
            await self._mount(self._guests[1:])

    async def stop(self) -> None:
        """Unmounts everything, stops every daemon; guests that are gone are left out. Raises VmError with what would not stop."""
        alive = [guest for guest in self._guests if guest.alive]
        first_is_up = self._guests[0].alive and not self._options.spread
        await asyncio.gather(*(self._unmount(guest) for guest in alive if not (first_is_up and guest is self._guests[0])))
        if first_is_up:
            await self._guests[0].output_of([self._program("distfuse"), "down", "--root", ROOT], 90)
        for name in ("lockd", "storaged"):
            await asyncio.gather(*(self._end(guest, f"distfuse-{name}") for guest in alive))

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def servers_live(self) -> bool:
        """Whether the guests with lockd and storageds run."""
        count = min(len(self._guests), self._options.storage) if self._options.spread else 1
        return all(guest.alive for guest in self._guests[:count])

    async def _up(self) -> None:
        first, options = self._guests[0], self._options
        names = ["lockd", *(f"storaged-{n}" for n in range(options.storage)), *(f"mount-{n}" for n in range(options.mounts))]
        # Logs at once outside of the guest: what a crash leaves behind.
        links = "".join(f"ln -s /run/vm/logs/{name}.log {ROOT}/run/{name}.log; " for name in names)
        await first.output_of(["sh", "-c", f"mkdir -p {ROOT}/run; {links}"])
        words = [
            self._program("distfuse"), "up", "--root", ROOT, "--storage", str(options.storage),
            "--fabric", options.fabric, "--device", "rxe0" if options.fabric == "verbs" else options.data_device,
            "--data-device", options.data_device, "--address", first.address, "--lease", options.lease,
            "--coherence", options.coherence,
        ]  # fmt: skip
        for mount in self.mounts():
            words += ["--mount", mount]
        await first.output_of(words, 120)
        await first.output_of(["cp", f"{ROOT}/cluster.toml", CONFIG])
        text = (first.share / "cluster.toml").read_text()
        for guest in self._guests[1:]:
            (guest.share / "cluster.toml").write_text(text)

    async def _start_spread(self) -> None:
        text = self._spread_file()
        for guest in self._guests:
            (guest.share / "cluster.toml").write_text(text)
        work = [
            self._daemon(self._home(number), "distfuse-storaged", f"storaged-{number}", ["--name", f"storaged-{number}"])
            for number in range(self._options.storage)
        ]
        await asyncio.gather(*work, self._daemon(self._guests[0], "distfuse-lockd", "lockd", []))

    def _home(self, storaged: int) -> Guest:
        return self._guests[storaged % len(self._guests)]

    def _spread_file(self) -> str:
        options, first = self._options, self._guests[0]
        lease = options.lease
        lease_ms = int(float(lease[:-2])) if lease.endswith("ms") else int(float(lease.removesuffix("s")) * 1000)
        device = "rxe0" if options.fabric == "verbs" else options.data_device
        text = f"""[cluster]
id = "{secrets.token_hex(16)}"
name = "vm"
[fabric]
kind = "{options.fabric}"
device = "{device}"
data_device = "{options.data_device}"
[lockd]
listen = "{first.address}:{FIRST_PORT}"
state_dir = "{ROOT}/lockd"
lease_ms = {lease_ms}
"""
        for number in range(options.storage):
            address = self._home(number).address
            text += f'[[storaged]]\nname = "storaged-{number}"\nroles = [{chr(34) + "meta" + chr(34) + ", " if number == 0 else ""}"data"]\n'
            text += f'data_listen = "{address}:{FIRST_PORT + 100 + number}"\ndata_dir = "{ROOT}/data/{number}"\n'
            if number == 0:
                text += f'meta_listen = "{address}:{FIRST_PORT + 1}"\nmeta_dir = "{ROOT}/meta"\n'
        return text

    async def _daemon(self, guest: Guest, program: str, name: str, words: list[str]) -> None:
        """Starts it detached and waits for the line that says it is ready."""
        log = f"/run/vm/logs/{name}"
        command = [self._program(program), "--config", CONFIG, *words, "--log-file", f"{log}.log"]
        script = (
            f"mkdir -p {ROOT}/data {ROOT}/run; setsid {' '.join(command)} --admin-socket {ROOT}/run/{name}.sock "
            f"</dev/null >{log}.out 2>&1 & pid=$!; "
            f"for i in $(seq 600); do grep -q '^ready' {log}.out && exit 0; kill -0 $pid || break; sleep 0.1; done; "
            f"cat {log}.out {log}.log >&2; exit 1"
        )
        await guest.output_of(["sh", "-c", script], 120)

    async def _mount(self, guests: list[Guest]) -> None:
        await asyncio.gather(*(self._mount_all(guest) for guest in guests))

    async def _mount_all(self, guest: Guest) -> None:
        await guest.output_of(["mkdir", "-p", f"{ROOT}/run"])
        for number, mount in enumerate(self.mounts()):
            await guest.output_of([
                self._program("distfuse"), "mount", "--config", CONFIG, "--coherence", self._options.coherence, "--name", f"{guest.name}:{number}",
                "--log-file", f"/run/vm/logs/mount-{number}.log", "--admin-socket", f"{ROOT}/run/mount-{number}.sock", mount,
            ], 120)  # fmt: skip

    async def _unmount(self, guest: Guest) -> None:
        for mount in self.mounts():
            script = f"! mountpoint -q {mount} || {self._program('distfuse')} umount {mount}"
            await guest.output_of(["sh", "-c", script], 90)
        await self._gone(guest, "distfuse")

    async def _end(self, guest: Guest, program: str) -> None:
        await guest.output_of(["sh", "-c", f"pkill -TERM -x {program[:15]} || true"])
        await self._gone(guest, program)

    async def _gone(self, guest: Guest, program: str) -> None:
        script = f"for i in $(seq 300); do pgrep -x {program[:15]} >/dev/null || exit 0; sleep 0.1; done; exit 1"
        status = await guest.run(["sh", "-c", script], seconds=60)
        if status != 0:
            raise VmError(f"{guest.name}: {program} does not stop")
