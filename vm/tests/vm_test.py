# SPDX-License-Identifier: Apache-2.0
"""scripts/vm with real guests. One boot serves many checks.

Exit status 77: guests cannot run here (ctest: skipped), unless DISTFUSE_REQUIRE_VM=1.
Environment: DISTFUSE_BUILD: the build under test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from vm.orchestrator import possible
from vm.orchestrator.errors import EXIT_DIRTY, EXIT_GUEST_LOST, EXIT_INTERRUPTED, EXIT_TIMEOUT

SOURCE = Path(__file__).resolve().parents[2]
VM = str(SOURCE / "scripts" / "vm")
BUILD = Path(os.environ["DISTFUSE_BUILD"])
BOOT_PROCESSOR_SECONDS = 20  # for one guest to its first mount; on two quiet cores the same in seconds of the clock


class Run:
    """A finished `scripts/vm run`."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr
        path = folder / "result.json"
        self.result = json.loads(path.read_text()) if path.exists() else {}
        self.problems: list[str] = self.result.get("problems", [])


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and "vm_test" not in line:
            found.append(line)
    return found


def descendants(pid: int) -> list[int]:
    """Its children and theirs."""
    children = [int(word) for task in Path(f"/proc/{pid}/task").glob("*/children") for word in task.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def eventually(condition: object, seconds: float = 20) -> bool:
    """Whether it holds before the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


class GuestTest(unittest.TestCase):
    """Base: a folder for the run, taken away when the test is good."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vm-test-"))
        self.addCleanup(self._tidy)
        self.began = time.monotonic()

    def _tidy(self) -> None:
        print(f"{self.id()}: {time.monotonic() - self.began:.0f} s", file=sys.stderr)
        failed = self._outcome.result.failures + self._outcome.result.errors  # type: ignore[attr-defined]
        if any(test is self for test, _ in failed):
            print(f"{self.id()}: see {self.folder}", file=sys.stderr)
        else:
            subprocess.run(["rm", "-rf", str(self.folder)], check=False)

    def vm(self, *arguments: str, seconds: float = 240) -> Run:
        """Runs scripts/vm to its end."""
        words = [VM, *arguments]
        if arguments[0] == "run":
            words[2:2] = ["--out", str(self.folder), "--boot-timeout", "120"]
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
        return Run(self.folder, done)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `scripts/vm run`."""
        return subprocess.Popen(
            [VM, "run", "--out", str(self.folder), "--boot-timeout", "120", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def assert_nothing_left(self, pids: list[int]) -> None:
        """No process of the run, no socket."""
        gone = eventually(lambda: not processes_of(self.folder) and not any(Path(f"/proc/{pid}").exists() for pid in pids))
        self.assertTrue(gone, processes_of(self.folder))
        self.assertNotIn(self.folder.name, Path("/proc/net/unix").read_text(errors="replace"))


class CommandTest(GuestTest):
    """COMMAND, and what a run makes of it."""

    def test_clean_run_passes_output_and_status_on(self) -> None:
        script = (
            'echo "mounts:$DISTFUSE_MOUNTS."; echo to-errors >&2; pwd; echo "$EXTRA $DISTFUSE_PASSED"; cat; '
            "for m in $DISTFUSE_MOUNTS; do echo data >$m/f; cat $m/f; done; cat /mnt/distfuse/1/f; exit 7"
        )
        os.environ["DISTFUSE_PASSED"] = "passed"
        run = self.vm("run", "--mounts", "2", "--strict", "--env", "EXTRA=extra", "--", "sh", "-c", script)
        self.assertEqual(run.status, 7, run.err)
        expected = ["mounts:/mnt/distfuse/0 /mnt/distfuse/1.", os.getcwd(), "extra passed", "data", "data", "data"]
        self.assertEqual(run.out.splitlines(), expected)
        self.assertIn("to-errors\n", run.err)
        self.assertEqual(run.problems, [])
        self.assertIn(str(self.folder), run.err)
        for name in ("node1/console.log", "node1/dmesg.log", "node1/share/logs/lockd.log", "node1/share/logs/mount-1.log"):
            self.assertGreater((self.folder / name).stat().st_size, 0, name)
        self.assert_nothing_left([])

    def test_boots_in_time(self) -> None:
        run = self.vm("run", "--", "true")
        self.assertEqual(run.status, 0, run.err)
        used, seconds = run.result["processor_seconds"]["mounted"], run.result["seconds"]["mounted"]
        print(f"first mount after {seconds} s, {used} s of processor time", file=sys.stderr)
        self.assertLess(used, BOOT_PROCESSOR_SECONDS)

    def test_everything_unclean_is_found(self) -> None:
        """One boot: a warning, a process, a mount, a queue pair and a core that COMMAND leaves; and COMMAND's success does not hide them."""
        script = (
            "echo '<4>a warning of the test' >/dev/kmsg; "
            "setsid sleep 1000 </dev/null >/dev/null 2>&1 & "
            "mkdir /tmp/leftover && mount -t tmpfs leftover /tmp/leftover; "
            f"python3 {SOURCE}/vm/tests/hold_queue_pair.py 10.77.0.1 </dev/null >/tmp/held 2>&1 & "
            "sh -c 'kill -SEGV $$'; "
            "for i in $(seq 100); do grep . /tmp/held && break; sleep 0.1; done; echo done"
        )
        began = self.vm("run", "--keep", "--mounts", "0", "--", "true")
        self.assertEqual(began.status, 0, began.err)
        name = self.folder.name
        late = self.vm("shell", "--run", name, "--", "sh", "-c", "echo from $(hostname); exit 5")
        self.assertEqual((late.status, late.out), (5, "from node1\n"), late.err)
        self.assertIn(f"{name}: node1 runs", self.vm("status").out)
        self.assertIn("in ", self.vm("fault", "--run", name, "stats").out)
        self.assertEqual(self.vm("fault", "--run", name, "bla").status, 2)
        left = self.vm("shell", "--run", name, "--", "sh", "-c", script)
        self.assertEqual(left.out, "held\ndone\n", left.err)
        ended = self.vm("down", "--run", name)
        self.assertEqual(ended.status, EXIT_DIRTY)
        result = json.loads((self.folder / "result.json").read_text())
        problems = "\n".join(result["problems"])
        for what in (
            r"kernel: \[.*\] a warning of the test", r"process \d+ is left: sleep 1000", r"mount is left: /tmp/leftover",
            r"RDMA resource is left: link rxe0/1 lqpn .* comm python3", r"RDMA resource is left: link rxe0/\S+ cm-idn", r"core: core\.sh",
        ):  # fmt: skip
            self.assertRegex(problems, what)
        self.assertEqual(result["status"], EXIT_DIRTY)
        self.assert_nothing_left([])


class EndTest(GuestTest):
    """Runs that do not end well."""

    def test_a_hanging_command_is_ended(self) -> None:
        run = self.vm("run", "--mounts", "0", "--timeout", "5", "--", "sleep", "1000")
        self.assertEqual(run.status, EXIT_TIMEOUT, run.err)
        self.assertIn("node1|", run.err, "the console's end")
        self.assertIn("was ended after 5 s", run.err)
        self.assert_nothing_left([])

    def test_a_guest_that_stands_still_is_ended(self) -> None:
        run = self.vm("run", "--mounts", "0", "--timeout", "5", "--", "vm-agent", "ask", "fault", "stop", "1")
        self.assertEqual(run.status, EXIT_TIMEOUT, run.err)
        self.assert_nothing_left([])

    def test_a_panic_ends_the_run_and_is_shown(self) -> None:
        run = self.vm("run", "--mounts", "0", "--timeout", "60", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")
        self.assertEqual(run.status, EXIT_GUEST_LOST, run.err)
        self.assertIn("Kernel panic - not syncing: sysrq triggered crash", run.err)
        self.assert_nothing_left([])

    def test_interrupted_and_killed_leave_nothing(self) -> None:
        for number, status in ((signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)):
            with self.subTest(number=number):
                run = self.start("--mounts", "0", "--", "sh", "-c", "echo running; sleep 1000")
                assert run.stdout and run.stderr
                self.assertEqual(run.stdout.readline(), "running\n")
                pids = descendants(run.pid)
                self.assertGreaterEqual(len(pids), 2, "QEMU and the switch")
                run.send_signal(number)
                self.assertEqual(run.wait(30), status)
                self.assert_nothing_left(pids)
                run.stdout.close()
                run.stderr.close()


MODULE = r"""
set -eu
first=/mnt/distfuse/0 second=/mnt/distfuse/1
grep -c ' distfuse ' /proc/mounts
lsmod | grep -q '^distfuse '
printf 'from the first' >$first/file
cat $second/file; echo
printf ', and the second' >>$second/file
cat $first/file; echo
dd if=/dev/urandom of=/tmp/data bs=64K count=24 2>/dev/null
mkdir $first/folder
cp /tmp/data $first/folder/data
cmp /tmp/data $second/folder/data
dd if=/dev/zero of=$second/folder/data bs=4K seek=100 count=1 conv=notrunc 2>/dev/null
dd if=/dev/zero of=/tmp/data bs=4K seek=100 count=1 conv=notrunc 2>/dev/null
cmp /tmp/data $first/folder/data
mv $first/folder/data $first/folder/moved
ls $second/folder
! rmmod distfuse 2>/dev/null
echo in use
"""


class ModuleTest(GuestTest):
    """Mounts of mode kernel: distfuse.ko loads, two mounts of one guest see each other's data, and all is gone after them."""

    def test_two_mounts_and_unload(self) -> None:
        run = self.vm("run", "--coherence", "kernel", "--mounts", "2", "--strict", "--", "sh", "-c", MODULE)
        self.assertEqual((run.status, run.problems), (0, []), run.err)
        expected = ["2", "from the first", "from the first, and the second", "moved", "in use"]
        self.assertEqual(run.out.splitlines(), expected)
        # The module was there, and what it leaves would have been a problem: `rmmod` ran.
        dmesg = (self.folder / "node1" / "dmesg.log").read_text()
        self.assertIn("distfuse: loading out-of-tree module", dmesg)

    def test_a_module_that_stays_is_found(self) -> None:
        began = self.vm("run", "--keep", "--coherence", "kernel", "--mounts", "0", "--", "true")
        self.assertEqual(began.status, 0, began.err)
        name = self.folder.name
        # What holds the device holds the module.
        held = self.vm("shell", "--run", name, "--", "sh", "-c", "setsid sleep 1000 </dev/distfuse >/dev/null 2>&1 & sleep 1; lsmod")
        self.assertRegex(held.out, r"(?m)^distfuse +\d+ +1")
        ended = self.vm("down", "--run", name)
        self.assertEqual(ended.status, EXIT_DIRTY, ended.err)
        problems = "\n".join(json.loads((self.folder / "result.json").read_text())["problems"])
        self.assertRegex(problems, r"node1: the module cannot be unloaded: .*in use")
        self.assertRegex(problems, r"process \d+ is left: sleep 1000")


TWO_GUESTS = r"""
set -u
say() { echo "$1=$2"; }
ping_loss() { busybox ping -c "$1" -W 1 -i 0.1 node2 | sed -n 's/.*received, \([0-9]*\)% packet loss.*/\1/p'; }

say nodes "$DISTFUSE_VM_NODES"
say loss $(ping_loss 3)
vm-agent rsh node2 'echo "$(hostname) $DISTFUSE_VM_NODE $DISTFUSE_MOUNTS"; exit 6'; say rsh $?
vm-agent rsh node2 'nohup ib_atomic_lat -d rxe0 -F -n 100 -p 7000 </dev/null >/tmp/server.log 2>&1 &'
sleep 2
ib_atomic_lat -d rxe0 -F -n 100 -p 7000 node2 >/tmp/client.log 2>&1; say atomics $?
cat /tmp/client.log
vm-agent ask fault delay 2 100
say delayed $(busybox ping -c 2 node2 | sed -n 's|.*min/avg/max = \([0-9]*\).*|\1|p')
vm-agent ask fault delay 2 0
vm-agent ask fault cut 2 on
say cut $(ping_loss 3)
vm-agent ask fault cut 2 off
vm-agent ask fault drop 2 40
say dropped $(ping_loss 30)
vm-agent ask fault drop 2 0
say healed $(ping_loss 3)
echo from-1 >/mnt/distfuse/0/file
say other "$(vm-agent rsh node2 'cat /mnt/distfuse/0/file')"
timeout 100 mpirun -n 2 --map-by node hostname; say mpi $?
timeout 100 mpirun -n 2 --map-by node mpi_shared_file --mounts /mnt/distfuse/0 --size 4M --hard-size 1M; say job $?
vm-agent ask fault kill 2
say killed $(ping_loss 2)
"""


class TwoGuestsTest(GuestTest):
    """Two guests: network, faults, RDMA, MPI, mounts; one boot."""

    def test_two_guests(self) -> None:
        # The second guest is without lockd and storageds, so that it can be killed.
        run = self.vm("run", "--nodes", "2", "--timeout", "240", "--", "sh", "-c", TWO_GUESTS, seconds=400)
        said = dict(re.findall(r"^(\w+)=(.*)$", run.out, re.MULTILINE))
        show = run.out + run.err
        self.assertEqual(said.get("nodes"), "node1 node2", show)
        self.assertEqual((said.get("loss"), said.get("cut"), said.get("healed"), said.get("killed")), ("0", "100", "0", "100"), show)
        self.assertGreaterEqual(int(said["delayed"]), 200, "100 ms each way")
        self.assertTrue(10 <= int(said["dropped"]) < 100, show)  # 64 % of 30 are lost; fewer than 10 % by chance: never
        self.assertEqual((said["rsh"], said["atomics"], said["mpi"], said["job"]), ("6", "0", "0", "0"), show)
        self.assertEqual(said["other"], "from-1")
        self.assertIn("node2 2 /mnt/distfuse/0\n", run.out)
        self.assertIn('"verified": true', run.out)
        self.assertEqual((run.status, run.problems), (0, []), show)
        self.assert_nothing_left([])

    def test_spread_and_all(self) -> None:
        script = "echo mine >/mnt/distfuse/0/$(hostname) && pgrep -a distfuse-storag | grep -o 'storaged-[0-9]$\\|name storaged-[0-9]'"
        run = self.vm("run", "--nodes", "2", "--spread", "--on", "all", "--", "sh", "-c", script)
        self.assertEqual((run.status, run.problems), (0, []), run.err)
        self.assertEqual(sorted(run.out.splitlines()), ["node1: name storaged-0", "node2: name storaged-1"])


if __name__ == "__main__":
    reason = possible.why_not()
    if reason:
        print(f"GUEST TESTS CANNOT RUN HERE: {reason}", file=sys.stderr)
        sys.exit(1 if os.environ.get("DISTFUSE_REQUIRE_VM") == "1" else 77)
    unittest.main(verbosity=2)
