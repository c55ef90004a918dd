# SPDX-License-Identifier: Apache-2.0
"""One run: boot, cluster, COMMAND, checks, end."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from . import initramfs, kernel, module, watch
from .cluster import Cluster
from .control import Server
from .errors import EXIT_DIRTY, EXIT_INTERRUPTED, EXIT_TIMEOUT, GuestLost, VmError
from .faults import Faults
from .guest import Guest, Machine
from .network import Switch
from .options import passed_environment
from .report import Report, say
from .vmlinux import boot_image

SOURCE = Path(__file__).resolve().parents[2]
VM = SOURCE / "vm"
CACHE = SOURCE / "build" / "vm"
SETTLE_SECONDS = 5  # for what ends by itself after COMMAND and the cluster


class Run:
    """The guests of a run and what is done with them."""

    def __init__(self, options: argparse.Namespace, programs: Path, folder: Path) -> None:
        self.options = options
        self.programs = programs
        self.report = Report(folder, options.command)
        self.guests: list[Guest] = []
        self.cluster: Cluster | None = None
        self._switch: Switch | None = None
        self._faults: Faults | None = None
        self._server = Server(self, folder.name)
        self._before: list[watch.State] = []
        self._loaded = False
        self._allowed = watch.Allowed.load(VM / "allowed_warnings")
        self._allowed.patterns.extend(re.compile(text) for text in options.allow)
        self._told_down = asyncio.Event()
        self._ended = asyncio.Event()
        self._status = 1

    # What others may ask for

    def describe(self) -> dict[str, Any]:
        """Of a run, for `scripts/vm status`."""
        guests = {guest.name: "runs" if guest.alive else "ended" for guest in self.guests}
        return {"folder": str(self.report.folder), "command": self.options.command, "guests": guests}

    def fault(self, words: list[str]) -> str:
        """See faults.py. Raises VmError."""
        if not self._faults:
            raise VmError("the guests are not there yet")
        return self._faults.apply(words)

    async def down(self) -> dict[str, Any]:
        """Ends a kept run; what was found."""
        self._told_down.set()
        await self._ended.wait()
        return {"status": self._status, "problems": self.report.problems}

    def environment(self) -> dict[str, str]:
        """Of COMMAND."""
        mounts = self.cluster.mounts() if self.cluster else []
        return {
            "PATH": f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DISTFUSE_MOUNTS": " ".join(mounts),
            "DISTFUSE_TEST_COHERENCE": self.options.coherence,
            "DISTFUSE_VM_NODES": " ".join(guest.name for guest in self.guests),
            # mpirun: other guests are reached through their agents; the host file names all guests.
            "OMPI_MCA_plm_rsh_agent": f"{self.programs / 'vm-agent'} rsh",
            "OMPI_MCA_orte_default_hostfile": "/run/vm/hosts",
            "OMPI_MCA_oob_tcp_if_include": "eth0",
            "OMPI_MCA_btl_tcp_if_include": "eth0",
            "OMPI_MCA_btl": "self,vader,tcp",
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            **passed_environment(self.options),
        }

    # Its course

    async def boot(self) -> None:
        """Starts the guests and the cluster. Raises VmError."""
        options = self.options
        chosen = kernel.debug_kernel() if options.kernel == "debug" else kernel.distribution_kernel(CACHE / "kernel")
        distfuse_ko = module.module_of(chosen, options.module, self.programs, CACHE) if options.coherence == "kernel" else None
        machine = Machine(
            chosen, boot_image(chosen, CACHE), initramfs.build(chosen, VM / "guest" / "first", CACHE),
            self.programs / "vm-agent", options.cpus, options.mem, options.disk, True, options.strict, options.icount, options.append,
        )  # fmt: skip
        self._switch = Switch(self.programs / "vm-switch", options.nodes, self.report.folder / "switch.log")
        for number in range(1, options.nodes + 1):
            guest = Guest(number, options.nodes, machine, self.report.folder / f"node{number}")
            guest.folder.mkdir(exist_ok=True)
            self.guests.append(guest)
        self._faults = Faults(self._switch, self.guests)
        for guest, network in zip(self.guests, self._switch.guest_ends):
            guest.ask = self._faults.answer
            await guest.start(network, VM / "guest" / "second")
        await self._server.start()
        own = await asyncio.gather(*(guest.booted(options.boot_timeout) for guest in self.guests))
        self._mark("booted")
        self.report.times["guest's own clock at boot"] = round(max(own), 2)
        self._before = await asyncio.gather(*(watch.state_of(guest) for guest in self.guests))
        if distfuse_ko:
            await self._unless_lost(module.load(self.guests, distfuse_ko))
            self._loaded = True
        if options.mounts > 0:
            self.cluster = Cluster(self.guests, self.programs, options)
            await self._unless_lost(self.cluster.start())
            self._mark("mounted")

    async def command(self) -> int:
        """Runs COMMAND; its status. Raises VmError when it hangs or a guest dies."""
        where = self.guests if self.options.on == "all" else self.guests[:1]
        work = [self._command_on(guest, f"{guest.name}: " if len(where) > 1 else "") for guest in where]
        status: int = max(await self._unless_lost(asyncio.gather(*work)))
        self.report.command_status = status
        self._mark("command")
        return status

    async def kept(self) -> None:
        """Waits until it is told to end."""
        await self._told_down.wait()

    async def check(self) -> None:
        """Stops the cluster and looks at what is left; what is wrong goes to the report."""
        problems = self.report.problems
        self._heal()
        try:
            if self.cluster and self.cluster.servers_live():
                await self.cluster.stop()
            for guest, before in zip(self.guests, self._before):
                # Without its servers a cluster cannot end in order.
                if guest.alive and (not self.cluster or self.cluster.servers_live()):
                    if self._loaded:
                        problems += [f"{guest.name}: {what}" for what in await module.unload(guest)]
                    problems += [f"{guest.name}: kernel memory is lost: {what}" for what in await watch.unreferenced(guest)]
                    problems += [f"{guest.name}: {what}" for what in await self._left(guest, before)]
        except VmError as error:
            problems.append(f"the cluster does not end in order: {error}")
            if error.status == EXIT_TIMEOUT:
                await self.show_hang()
        self.check_kernels()

    def check_kernels(self) -> None:
        """Kernel messages and cores; also after a failure."""
        for guest in self.guests:
            found = [f"{guest.name}: kernel: {text}" for text in watch.bad_records(guest.kernel_log, self._allowed)]
            found += [f"{guest.name}: core: {path.name}" for path in sorted((guest.share / "cores").glob("*"))]
            self.report.problems += [what for what in found if what not in self.report.problems]

    async def show_hang(self) -> None:
        """What the guests' tasks wait for, on their consoles, and the consoles' ends."""
        for guest in self.guests:
            try:
                await guest.run(["sh", "-c", "echo w >/proc/sysrq-trigger"], seconds=5)
            except VmError:
                pass
            say(f"the end of {guest.name}'s console:\n{guest.console_tail()}")

    def finish(self, status: int) -> int:
        """The status of the whole run."""
        self._status = status or (EXIT_DIRTY if self.report.problems else 0)
        return self._status

    async def close(self) -> None:
        """Ends everything."""
        await asyncio.gather(*(guest.close() for guest in self.guests if hasattr(guest, "process")))
        if self._switch:
            self._switch.stop()
        self._server.stop()
        self.report.write(self._status)
        self._ended.set()
        await asyncio.sleep(0.05)  # the answer to `down` goes out

    def _mark(self, name: str) -> None:
        self.report.mark(name, sum(guest.processor_seconds() for guest in self.guests))

    def _heal(self) -> None:
        """Takes the faults back, so that what is checked is not their effect."""
        if self._faults:
            self._faults.heal()

    async def _unless_lost(self, work: Any) -> Any:
        """What the work gives. Raises GuestLost as soon as a guest dies that was not told to."""
        task = asyncio.ensure_future(work)
        lost = [asyncio.ensure_future(guest.lost()) for guest in self.guests]
        try:
            done, _ = await asyncio.wait([task, *lost], return_when=asyncio.FIRST_COMPLETED)
            if task not in done:
                next(iter(done)).result()
            return await task
        finally:
            for other in [task, *lost]:
                other.cancel()
            await asyncio.gather(task, *lost, return_exceptions=True)  # their ends are seen

    async def _command_on(self, guest: Guest, prefix: str) -> int:
        starts_line = {False: True, True: True}

        def show(data: bytes, errors: bool) -> None:
            if prefix and data:
                lines = data.decode(errors="replace").splitlines(keepends=True)
                first = starts_line[errors]
                text = "".join((prefix if first or at > 0 else "") + line for at, line in enumerate(lines))
                starts_line[errors] = data.endswith(b"\n")
                data = text.encode()
            stream = sys.stderr if errors else sys.stdout
            stream.buffer.write(data)
            stream.flush()

        return await guest.run(self.options.command, show, os.getcwd(), self.environment(), self.options.timeout)

    async def _left(self, guest: Guest, before: watch.State) -> list[str]:
        """What is still there after a while."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while True:
            found = watch.leftovers(before, await watch.state_of(guest))
            if not found or asyncio.get_running_loop().time() > deadline:
                return found
            await asyncio.sleep(0.3)


async def run_command(run: Run, command_done: Any = None) -> int:
    """`scripts/vm run`: the exit status. `command_done(status)`: called when a run that is kept has run COMMAND."""
    status = EXIT_INTERRUPTED
    try:
        await run.boot()
        status = await run.command() if run.options.command else 0
        if command_done:
            command_done(status)
            await run.kept()
        await run.check()
    except VmError as error:
        status = error.status
        say(str(error))
        if status == EXIT_TIMEOUT:
            await run.show_hang()
        run.check_kernels()
    finally:
        status = run.finish(status)
        await run.close()
    return status


__all__ = ["Run", "run_command", "GuestLost"]
