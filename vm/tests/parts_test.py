# SPDX-License-Identifier: Apache-2.0
"""The parts of scripts/vm that need no guest. Environment: VM_SWITCH: the program."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from vm.orchestrator import frames, initramfs, kernel, options, watch
from vm.orchestrator.errors import VmError
from vm.orchestrator.network import Switch
from vm.orchestrator.processes import processor_seconds
from vm.orchestrator.run import VM

BROADCAST = b"\xff" * 6


def frame_from(source: int, destination: bytes, text: bytes = b"") -> bytes:
    """An Ethernet frame of a guest."""
    return destination + address(source) + b"\x08\x00" + text


def address(number: int) -> bytes:
    """A guest's MAC."""
    return bytes([0x52, 0x54, 0, 0x77, 0, number])


class SwitchTest(unittest.TestCase):
    """vm-switch on three ports."""

    def setUp(self) -> None:
        self.switch = Switch(Path(os.environ["VM_SWITCH"]), 3, Path("/dev/null"))
        self.ports = self.switch.guest_ends
        for port in self.ports:
            port.settimeout(5)
        self.addCleanup(self._end)

    def _end(self) -> None:
        self.switch.stop()
        for port in self.ports:
            port.close()

    def nothing_at(self, port: int) -> None:
        """Asserts that no frame waits there. A command's answer comes after all earlier frames were forwarded."""
        self.switch.command("stats")
        self.ports[port].setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.ports[port].recv(100)
        self.ports[port].settimeout(5)

    def learn(self) -> None:
        """Every port has been heard once."""
        for number, port in enumerate(self.ports):
            port.send(frame_from(number, BROADCAST))
        for port in self.ports:
            port.recv(100)
            port.recv(100)

    def test_floods_what_it_does_not_know_and_learns(self) -> None:
        hello = frame_from(0, address(2), b"first")
        self.ports[0].send(hello)
        self.assertEqual(self.ports[1].recv(100), hello)
        self.assertEqual(self.ports[2].recv(100), hello)
        answer = frame_from(2, address(0), b"second")
        self.ports[2].send(answer)
        self.assertEqual(self.ports[0].recv(100), answer)
        self.nothing_at(1)

    def test_a_cut_port_is_alone(self) -> None:
        self.learn()
        self.assertEqual(self.switch.command("cut 2 on"), "ok")
        self.ports[0].send(frame_from(0, address(1)))
        self.ports[1].send(frame_from(1, address(0)))
        self.ports[0].send(frame_from(0, address(2), b"others"))
        self.assertTrue(self.ports[2].recv(100).endswith(b"others"))
        self.nothing_at(1)
        self.nothing_at(0)
        self.switch.command("cut 2 off")
        self.ports[0].send(frame_from(0, address(1), b"back"))
        self.assertTrue(self.ports[1].recv(100).endswith(b"back"))

    def test_delays_in_order(self) -> None:
        self.learn()
        self.switch.command("delay 2 150")
        began = time.monotonic()
        self.ports[0].send(frame_from(0, address(1), b"late"))
        time.sleep(0.02)
        self.switch.command("delay 2 0")
        self.ports[0].send(frame_from(0, address(1), b"later"))
        self.assertTrue(self.ports[1].recv(100).endswith(b"late"))
        self.assertGreaterEqual(time.monotonic() - began, 0.149)
        self.assertTrue(self.ports[1].recv(100).endswith(b"later"))

    def test_drops_the_share_it_is_told(self) -> None:
        self.learn()
        self.switch.command("seed 7")
        self.switch.command("drop 2 30")
        arrived = 0
        for _ in range(50):
            for _ in range(8):
                self.ports[0].send(frame_from(0, address(1)))
            time.sleep(0.002)
            self.switch.command("stats")
            self.ports[1].setblocking(False)
            try:
                while self.ports[1].recv(100):
                    arrived += 1
            except BlockingIOError:
                pass
        # 400 frames, each lost with 30 %: 280 arrive, with a deviation of 9; six of those either way.
        self.assertGreater(arrived, 225)
        self.assertLess(arrived, 335)

    def test_a_guest_that_reads_nothing_costs_only_itself(self) -> None:
        self.learn()
        big = frame_from(0, address(1), b"x" * 4000)
        for _ in range(4000):  # 16 MB: twice the bound
            self.ports[0].send(big)
        for number in range(50):
            self.ports[0].send(frame_from(0, address(2), b"%d" % number))
            self.assertTrue(self.ports[2].recv(100).endswith(b"%d" % number))
        first, second, _ = self.switch.command("stats").split("; ")
        self.assertIn("dropped 0", first)
        self.assertGreater(int(second.split()[-1]), 1000)

    def test_short_frames_and_wrong_commands(self) -> None:
        self.ports[0].send(b"short")
        self.nothing_at(1)
        for line in ("cut 4 on", "cut 1 maybe", "delay 1 -5", "delay 1 10001", "drop 1 101", "drop 1 x", "", "bla"):
            self.assertTrue(self.switch.command(line).startswith("error"), line)

    def test_a_guest_that_is_gone(self) -> None:
        self.learn()
        self.ports[1].close()
        self.ports[0].send(frame_from(0, address(1)))
        self.ports[0].send(frame_from(0, address(2), b"on"))
        self.assertTrue(self.ports[2].recv(100).endswith(b"on"))
        used = processor_seconds(self.switch.process.pid)
        time.sleep(0.5)
        self.assertLess(processor_seconds(self.switch.process.pid) - used, 0.2, "it spins")
        self.assertTrue(self.switch.command("stats"))

    def test_ends_with_its_control(self) -> None:
        self.switch._control.shutdown(socket.SHUT_RDWR)  # pylint: disable=protected-access
        self.assertEqual(self.switch.process.wait(5), 0)


class WatchTest(unittest.TestCase):
    """What is found in a guest's kernel messages and lists."""

    def setUp(self) -> None:
        self.allowed = watch.Allowed.load(VM / "allowed_warnings")

    def test_levels_and_reports(self) -> None:
        records = [
            "6,1,1000,-;all is well\n",
            "4,2,2000000,-;a warning\n SUBSYSTEM=x\n",
            "12,3,1,-;a warning of a program\n",
            "6,4,1,-;BUG: unable to handle page fault\n",
            "6,5,1,-;INFO: task a:1 blocked for more than 60 seconds.\n",
            "5,6,1,-;BUG: KFENCE: use-after-free\n",
            "4,7,1,-;eth0 speed is unknown, defaulting to 1000\n",
            "not a record",
        ]
        bad = watch.bad_records(records, self.allowed)
        self.assertEqual(len(bad), 5, bad)
        self.assertEqual(bad[0], "[2.000] a warning")

    def test_a_pattern_needs_a_reason(self) -> None:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# why\n^a$\n\n^b$\n")
            file.flush()
            with self.assertRaises(VmError):
                watch.Allowed.load(Path(file.name))

    def test_leftovers(self) -> None:
        before = watch.State({"7": "a"}, ["/ (overlay)"], ["rxe0: qp 1", "link rxe0/1 lqpn 1 type GSI"])
        same = watch.State({"7": "a"}, ["/ (overlay)"], ["rxe0: qp 1", "link rxe0/1 lqpn 1 type GSI"])
        self.assertEqual(watch.leftovers(before, same), [])
        after = watch.State({"7": "a", "9": "b"}, ["/ (overlay)", "/m (fuse)"], ["rxe0: qp 2", "link rxe0/1 lqpn 17"])
        self.assertEqual(len(watch.leftovers(before, after)), 4)


class FramesTest(unittest.TestCase):
    """The host's side of the agent's frames; vm/agent/frame_test.cc has the other."""

    def test_round_trip(self) -> None:
        async def both() -> frames.Frame:
            stream = asyncio.StreamReader()
            stream.feed_data(frames.encode(7, frames.Type.OUTPUT, b"abc"))
            return await frames.read(stream)

        self.assertEqual(asyncio.run(both()), frames.Frame(7, frames.Type.OUTPUT, b"abc"))

    def test_a_length_beyond_the_limit_is_refused(self) -> None:
        async def bad() -> None:
            stream = asyncio.StreamReader()
            stream.feed_data(struct.pack("<IBI", 1, 4, frames.MAX_FRAME + 1))
            await frames.read(stream)

        with self.assertRaises(ValueError):
            asyncio.run(bad())

    def test_a_job(self) -> None:
        self.assertEqual(frames.encode_job(["a", "b c"], "/x", {"N": "1"}, True), b"\x01/x\x001\x00N=1\x00a\x00b c\x00")


class InitramfsTest(unittest.TestCase):
    """What it holds, as cpio reads it."""

    def test_modules_come_after_what_they_need(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "k").mkdir()
            every = sorted({name for names in initramfs.MODULES.values() for name in names})
            for name in [*every, "low", "middle"]:
                (root / "k" / f"{name}.ko").write_bytes(name.encode())
            lines = [f"k/{name}.ko: k/middle.ko k/low.ko" for name in every]
            (root / "modules.dep").write_text("\n".join([*lines, "k/middle.ko: k/low.ko", "k/low.ko:"]) + "\n")
            (root / "modules.builtin").write_text("kernel/fs/9p/9p.ko\n")
            made = initramfs.build(kernel.Kernel("x", root, root), VM / "guest" / "first", root / "cache")
            with made.open("rb") as archive:
                listed = subprocess.run(["cpio", "-t", "--quiet"], stdin=archive, capture_output=True, text=True, check=True)
            names = listed.stdout.split()
            self.assertIn("init", names)
            self.assertIn("bin/busybox", names)
            self.assertNotIn("modules/9p.ko", names)
            extract = ["cpio", "-i", "--quiet", "--to-stdout", "modules.root"]
            with made.open("rb") as archive:
                extracted = subprocess.run(extract, stdin=archive, capture_output=True, check=True)
            self.assertEqual(extracted.stdout.split()[:2], [b"low.ko", b"middle.ko"])


class OptionsTest(unittest.TestCase):
    """Wrong lines are refused before anything starts."""

    def test_refused(self) -> None:
        for line in (
            ["run"], ["run", "--nodes", "17", "--", "true"], ["run", "--nodes", "0", "--", "true"],
            ["run", "--env", "x", "--", "true"], ["run", "--mem", "1", "--", "true"],
        ):  # fmt: skip
            with self.assertRaises(VmError, msg=str(line)) as caught:
                options.parse(line)
            self.assertEqual(caught.exception.status, 2)

    def test_the_command_is_as_given(self) -> None:
        parsed = options.parse(["run", "--nodes", "2", "--", "sh", "-c", "a -- b"])
        self.assertEqual(parsed.command, ["sh", "-c", "a -- b"])
        self.assertEqual((parsed.nodes, parsed.mounts, parsed.on), (2, 1, "first"))


if __name__ == "__main__":
    unittest.main()
