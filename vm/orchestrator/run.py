# SPDX-License-Identifier: Apache-2.0
"""One run: boot, cluster, COMMAND, checks, end."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from . import initramfs, kernel, watch
from .cluster import Cluster
from .errors import EXIT_DIRTY, EXIT_TIMEOUT, GuestLost, VmError
from .faults import Faults
from .guest import Guest, Machine
from .network import Switch
from .options import passed_environment
from .report import Report, say
from .vmlinux import boot_image

SOURCE = Path(__file__).resolve().parents[2]
VM = SOURCE / "vm"
CACHE = SOURCE / "build" / "vm"


class Run:
    """The guests of a run and what is done with them."""

    def __init__(self, options: argparse.Namespace, programs: Path, folder: Path) -> None:
        self.options = options
        self.programs = programs
        self.report = Report(folder, options.command)
        self.guests: list[Guest] = []
        self.switch: Switch | None = None
        self.cluster: Cluster | None = None
        self._before: list[watch.State] = []
        self._allowed = watch.Allowed.load(VM / "allowed_warnings")

    def processor_seconds(self) -> float:
        """Of all guests so far."""
        return sum(guest.processor_seconds() for guest in self.guests)

    async def boot(self) -> None:
        """Starts the guests and the cluster. Raises VmError."""
        options = self.options
        chosen = kernel.debug_kernel() if options.kernel == "debug" else kernel.distribution_kernel(CACHE / "kernel")
        machine = Machine(
            chosen, boot_image(chosen, CACHE), initramfs.build(chosen, VM / "guest" / "first", CACHE),
            self.programs / "vm-agent", options.cpus, options.mem, True, options.strict, options.append,
        )  # fmt: skip
        self.switch = Switch(self.programs / "vm-switch", options.nodes)
        for number in range(1, options.nodes + 1):
            guest = Guest(number, options.nodes, machine, self.report.folder / f"node{number}")
            guest.folder.mkdir(exist_ok=True)
            self.guests.append(guest)
        faults = Faults(self.switch, self.guests)
        for guest, network in zip(self.guests, self.switch.guest_ends):
            guest.ask = faults.answer
            await guest.start(network, VM / "guest" / "second")
        own = await asyncio.gather(*(guest.booted(options.boot_timeout) for guest in self.guests))
        self.report.mark("booted", self.processor_seconds())
        self.report.times["guest's own clock at boot"] = round(max(own), 2)
        self._before = await asyncio.gather(*(watch.state_of(guest) for guest in self.guests))
        if options.mounts > 0:
            self.cluster = Cluster(self.guests, self.programs, options)
            await self.cluster.start()
            self.report.mark("mounted", self.processor_seconds())

    def environment(self) -> dict[str, str]:
        """Of COMMAND."""
        mounts = self.cluster.mounts() if self.cluster else []
        rsh = f"{self.programs / 'vm-agent'} rsh"
        return {
            "PATH": f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DISTFUSE_MOUNTS": " ".join(mounts),
            "DISTFUSE_VM_NODES": " ".join(guest.name for guest in self.guests),
            "DISTFUSE_VM_PROGRAMS": str(self.programs),
            # mpirun: other guests are reached through their agents; the host file names all guests.
            "OMPI_MCA_plm_rsh_agent": rsh,
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

    async def command(self) -> int:
        """Runs COMMAND; its status. Raises VmError when it hangs or a guest dies."""
        where = self.guests if self.options.on == "all" else self.guests[:1]
        work = [self._command_on(guest, f"{guest.name}: " if len(where) > 1 else "") for guest in where]
        statuses = await asyncio.gather(*work)
        self.report.command_status = max(statuses)
        self.report.mark("command", self.processor_seconds())
        return max(statuses)

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

        environment = {**self.environment(), "DISTFUSE_VM_NODE": str(guest.number)}
        try:
            return await guest.run(self.options.command, show, os.getcwd(), environment, self.options.timeout)
        except VmError as error:
            if error.status == EXIT_TIMEOUT:
                await self._show_hang(guest)
            raise

    async def _show_hang(self, guest: Guest) -> None:
        """What a hung guest's tasks wait for goes to its console."""
        try:
            await guest.run(["sh", "-c", "echo w >/proc/sysrq-trigger"], seconds=5)
        except VmError:
            pass
        say(f"{guest.name} hangs; the end of its console:\n{guest.console_tail()}")

    async def check(self) -> None:
        """Stops the cluster and looks at what is left; what is wrong goes to the report."""
        problems = self.report.problems
        try:
            if self.cluster:
                await self.cluster.stop()
        except VmError as error:
            problems.append(f"the cluster does not stop: {error}")
        for guest, before in zip(self.guests, self._before):
            if guest.alive:
                try:
                    problems += [f"{guest.name}: {what}" for what in watch.leftovers(before, await watch.state_of(guest))]
                except VmError as error:
                    problems.append(str(error))
        self.check_kernels()

    def check_kernels(self) -> None:
        """Kernel messages and cores; also after a failure."""
        for guest in self.guests:
            found = [f"{guest.name}: kernel: {text}" for text in watch.bad_records(guest.kernel_log, self._allowed)]
            found += [f"{guest.name}: core: {path.name}" for path in sorted((guest.share / "cores").glob("*"))]
            if not guest.alive and not guest.told_to_die:
                found.append(f"{guest.name} died\n{guest.console_tail()}")
            self.report.problems += [what for what in found if what not in self.report.problems]

    def status(self, command_status: int) -> int:
        """Of the whole run."""
        return command_status or (EXIT_DIRTY if self.report.problems else 0)

    async def close(self) -> None:
        """Ends everything."""
        await asyncio.gather(*(guest.close() for guest in self.guests if hasattr(guest, "process")))
        if self.switch:
            self.switch.stop()


async def run_command(options: argparse.Namespace, programs: Path, folder: Path) -> int:
    """`scripts/vm run`: the exit status."""
    run = Run(options, programs, folder)
    status = 1
    try:
        await run.boot()
        status = await run.command() if options.command else 0
        await run.check()
        status = run.status(status)
    except VmError as error:
        run.check_kernels()
        say(str(error))
        status = error.status
    finally:
        await run.close()
        run.report.write(status)
    return status


__all__ = ["Run", "run_command", "GuestLost"]
