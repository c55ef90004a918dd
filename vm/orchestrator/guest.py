# SPDX-License-Identifier: Apache-2.0
"""One guest: its QEMU process, the link to its agent, its kernel's messages."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Awaitable, Callable, Mapping, Sequence

from . import frames
from .errors import EXIT_TIMEOUT, GuestLost, VmError
from .frames import Type
from .kernel import Kernel
from .network import address_of
from .processes import processor_seconds, start_dependent

PANIC = re.compile(r"Kernel panic|Oops|BUG:")
Output = Callable[[bytes, bool], None]  # what was written, whether to standard error

STRICT = (
    "slub_debug=FZPU page_poison=1 init_on_free=1 hung_task_panic=1 softlockup_panic=1 oops=panic "
    "sysctl.kernel.hung_task_timeout_secs=60"
)
# Interpreting ACPI's interrupt table takes 25 s a device with KASAN and lockdep.
DEBUG = "pci=noacpi"


@dataclass(frozen=True)
class Machine:
    """What all guests of a run have in common."""

    kernel: Kernel
    image: Path  # of the kernel, as QEMU gets it
    initramfs: Path
    agent: Path
    cpus: int
    memory_mib: int
    disk_mib: int  # 0: /cluster is in memory
    rdma: bool
    strict: bool
    icount: bool
    append: str


class Job:
    """A program that runs in a guest."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class Guest:
    """A guest from its start to its end. Numbers are from 1."""

    def __init__(self, number: int, nodes: int, machine: Machine, folder: Path) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = address_of(number)
        self.folder = folder
        self.share = folder / "share"
        self.console = folder / "console.log"
        self._disk = folder / "disk"
        self.kernel_log: list[str] = []  # records as /dev/kmsg gives them
        self.told_to_die = False
        self.ask: Callable[[str], Awaitable[str]] | None = None  # requests of the guest's programs
        self._machine = machine
        self._nodes = nodes
        self._jobs: dict[int, Job] = {}
        self._next_channel = 1
        self._up = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = None
        self._processor = 0.0

    # Start and end

    def _prepare_share(self, second: Path) -> None:
        for part in ("logs", "cores"):
            (self.share / part).mkdir(parents=True, exist_ok=True)
        (self.share / "second").write_bytes(second.read_bytes())
        (self.share / "second").chmod(0o755)
        parameters = {
            "NODE": self.number,
            "NODES": self._nodes,
            "ADDRESS": self.address,
            "MODULES": self._machine.kernel.modules,
            "AGENT": self._machine.agent,
            "RDMA": "rxe" if self._machine.rdma else "none",
            "DISK": "/dev/vda" if self._machine.disk_mib else "",
        }
        (self.share / "parameters").write_text("".join(f"{key}='{value}'\n" for key, value in parameters.items()))
        (self.share / "hosts").write_text("".join(f"node{n} slots=64\n" for n in range(1, self._nodes + 1)))

    def _make_disk(self) -> None:
        with open(self._disk, "wb") as disk:
            disk.truncate(self._machine.disk_mib << 20)
        made = subprocess.run(["mkfs.ext4", "-q", "-F", str(self._disk)], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise VmError(f"{self._disk}: {made.stderr.strip()}")

    def _command(self, network: int, agent: int) -> list[str]:
        machine = self._machine
        # A panic ends QEMU at once (-no-reboot). no_timer_check: a busy host would fail the check, and the kernel would stop.
        append = "console=ttyS0 loglevel=7 tsc=reliable no_timer_check net.ifnames=0 panic=-1 sysrq_always_enabled=1 random.trust_cpu=on"
        append += f" {STRICT}" if machine.strict else ""
        append += f" {DEBUG}" if machine.kernel.debug else ""
        append += f" {machine.append}" if machine.append else ""
        shared = "security_model=none,multidevs=remap"
        disk = ["-drive", f"file={self._disk},if=virtio,format=raw,cache=unsafe"] if machine.disk_mib else []
        # One instruction each 2 ns; a guest that sleeps goes on at its next timer at once.
        clock = ["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"] if machine.icount else ["-accel", "tcg,thread=multi"]
        return [
            "qemu-system-x86_64", "-name", f"distfuse-{self.name}", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-machine", "pc", *clock, "-cpu", "max",
            "-smp", str(machine.cpus), "-m", str(machine.memory_mib), "-rtc", "base=utc",
            "-kernel", str(machine.image), "-initrd", str(machine.initramfs), "-append", append,
            "-serial", f"file:{self.console}",
            "-virtfs", f"local,id=root,path=/,mount_tag=root,readonly=on,{shared}",
            "-virtfs", f"local,id=share,path={self.share},mount_tag=share,{shared}",
            "-netdev", f"dgram,id=net,local.type=fd,local.str={network}",
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:77:00:{self.number:02x},ioeventfd=off,romfile=",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,fd={agent}", "-device", "virtserialport,chardev=agent,name=agent",
            *disk,
        ]  # fmt: skip

    async def start(self, network: socket.socket, second: Path) -> None:
        """Starts QEMU; `booted` says when the guest is up."""
        self._prepare_share(second)
        if self._machine.disk_mib:
            self._make_disk()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        fds = [network.fileno(), theirs.fileno()]
        with open(self.folder / "qemu.log", "wb") as log:
            self.process = start_dependent(self._command(*fds), fds, log)
        for end in (network, theirs):
            end.close()
        self._log = open(self.folder / "dmesg.log", "w", encoding="utf-8")  # pylint: disable=consider-using-with
        self._spawn(self._receive())

    async def booted(self, seconds: float) -> float:
        """Waits for the agent; the guest's own seconds since its start. Raises VmError with the console's tail when it takes longer."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._up), seconds)
        except asyncio.TimeoutError:
            raise VmError(f"{self.name} is not up after {seconds:g} s\n{self.console_tail()}", EXIT_TIMEOUT) from None

    def kill(self, told: bool = False) -> None:
        """As a power cut. `told`: somebody wanted it, so its end is no failure."""
        self.told_to_die = self.told_to_die or told
        self._processor = self.processor_seconds()
        self.process.kill()
        self.process.wait()

    async def lost(self) -> None:
        """Waits until the guest has ended without being told to; raises GuestLost then."""
        await self._gone.wait()
        if self.told_to_die:
            await asyncio.Event().wait()
        raise GuestLost(f"{self.name} has ended\n{self.console_tail()}")

    def stop_or_continue(self, stop: bool) -> None:
        """Halts its processors, or lets them run on."""
        os.kill(self.process.pid, signal.SIGSTOP if stop else signal.SIGCONT)

    async def close(self) -> None:
        """Ends the guest and everything that waits for it."""
        self.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        self._disk.unlink(missing_ok=True)
        if self._log:
            self._log.close()

    @property
    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self.process.poll() is None

    def processor_seconds(self) -> float:
        """What QEMU has used so far."""
        return processor_seconds(self.process.pid) or self._processor

    def console_tail(self, least: int = 40, most: int = 200) -> str:
        """The end of the console, for a person; from the first line of a panic on, if there is one."""
        try:
            text = self.console.read_text(errors="replace").replace("\r", "")
        except OSError:
            text = ""
        log = (self.folder / "qemu.log").read_text(errors="replace")
        lines = text.splitlines()[-most:]
        panic = next((i for i, line in enumerate(lines) if PANIC.search(line)), len(lines))
        shown = lines[min(panic, max(0, len(lines) - least)) :] + log.splitlines()[-5:]
        tail = "\n".join(f"  {self.name}| {line}" for line in shown)
        return tail or f"  {self.name}| (nothing on the console)"

    # Programs in the guest

    def launch(
        self,
        arguments: Sequence[str],
        output: Output,
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
        terminal: bool = False,
        keep_input: bool = False,
    ) -> tuple[int, Job]:
        """Starts a program; its channel and what becomes of it. Raises GuestLost when the guest is not there."""
        if not self.alive:
            raise GuestLost(f"{self.name} is not running")
        channel, self._next_channel = self._next_channel, self._next_channel + 1
        job = self._jobs[channel] = Job(output)
        self.send(channel, Type.START, frames.encode_job(arguments, folder, environment, terminal, keep_input))
        return channel, job

    def send(self, channel: int, kind: Type, payload: bytes = b"") -> None:
        """A frame to the agent."""
        self._writer.write(frames.encode(channel, kind, payload))

    async def run(
        self,
        arguments: Sequence[str],
        output: Output | None = None,
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> int:
        """Runs a program to its end; its exit status. Raises GuestLost, or VmError after `seconds` (the program is killed)."""
        channel, job = self.launch(arguments, output or (lambda data, errors: None), folder, environment)
        try:
            return await asyncio.wait_for(asyncio.shield(job.ended), seconds)
        except asyncio.TimeoutError:
            self.send(channel, Type.SIGNAL, bytes([signal.SIGKILL]))
            words = " ".join(arguments)
            raise VmError(f"{self.name}: `{words}` was ended after {seconds:g} s", EXIT_TIMEOUT) from None

    async def output_of(self, arguments: Sequence[str], seconds: float = 60) -> str:
        """What a program prints, errors included. Raises VmError when it fails."""
        data = bytearray()
        status = await self.run(arguments, lambda more, errors: data.extend(more), seconds=seconds)
        text = data.decode(errors="replace")
        if status != 0:
            raise VmError(f"{self.name}: `{' '.join(arguments)}` failed ({status}): {text.strip()}")
        return text

    # The link to the agent

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self) -> None:
        try:
            while True:
                self._handle(await frames.read(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            if not self._up.done():
                self._up.set_exception(VmError(f"{self.name} ended while it booted\n{self.console_tail()}"))
            lost = GuestLost(f"{self.name} has ended ({type(error).__name__})\n{self.console_tail()}")
            for job in self._jobs.values():
                if not job.ended.done():
                    job.ended.set_exception(lost)
                    job.ended.exception()  # seen, should nobody wait
            self._jobs.clear()
            self._gone.set()

    def _handle(self, frame: frames.Frame) -> None:
        if frame.type == Type.KERNEL:
            record = frame.payload.decode(errors="replace")
            self.kernel_log.append(record)
            if self._log:
                self._log.write(record)
                self._log.flush()
        elif frame.type == Type.HELLO:
            if not self._up.done():
                self._up.set_result(float(frame.payload))
        elif frame.type == Type.ASK:
            self._spawn(self._answer(frame.channel, frame.payload.decode(errors="replace")))
        elif job := self._jobs.get(frame.channel):
            if frame.type == Type.EXIT:
                del self._jobs[frame.channel]
                job.ended.set_result(int.from_bytes(frame.payload, "little"))
            else:
                job.output(frame.payload, frame.type == Type.ERRORS)

    async def _answer(self, channel: int, question: str) -> None:
        answer = await self.ask(question) if self.ask else "error: nobody answers"
        self.send(channel, Type.ANSWER, answer.encode())
