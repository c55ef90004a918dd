# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/vm."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .errors import EXIT_USAGE, VmError

DESCRIPTION = """QEMU guests with soft-RoCE and a DistFUSE cluster over verbs, on this machine, without an image or a network of
its own. docs/vm.md has more."""

STATUS = """exit status of run: COMMAND's (of the first guest; with --on all the highest), or
  90 the guests were not clean: a warning in dmesg, a leak, a leftover    92 guests or cluster could not be started
  91 COMMAND or a guest hung and was ended                                93 a guest died
If COMMAND fails and the guests are not clean, the status is COMMAND's and what was not clean is printed."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; `do` names the command. Ends the program with status 2 for a wrong line."""
    parser = argparse.ArgumentParser(prog="scripts/vm", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="do", required=True, metavar="run|shell|fault|status|down|check")
    _add_run(commands)
    _add_shell(commands)
    _add_others(commands)
    options = parser.parse_args(arguments)
    if options.do in ("run", "shell"):
        _check(options)
    return options


def _add_guests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="guests (1 to 16; default 1)")
    add("--mounts", type=int, default=1, metavar="M", help="mounts on each guest (0: no cluster; default 1)")
    add("--coherence", choices=("user", "kernel"), default="user", help="mode of the mounts; kernel loads distfuse.ko (default user)")
    add("--module", type=Path, metavar="FILE", help="the distfuse.ko to load instead of the build's")
    add("--cpus", type=int, default=1, metavar="C", help="processors of a guest (default 1; more are slower under TCG)")
    add("--mem", type=int, default=2048, metavar="MB", help="memory of a guest (default 2048)")
    add("--disk", type=int, default=0, metavar="MB", help="an ext4 disk for /cluster of each guest, gone with it (default: in its memory)")
    add("--kernel", choices=("stock", "debug"), default="stock", help="Debian's (default), or the debug kernel of the cache")
    add("--strict", action="store_true", help="slab poisoning; panic on an oops, a hung task, a soft lockup")
    add("--icount", action="store_true", help="the guest's clock counts its instructions: times repeat on a busy host")
    add("--append", default="", metavar="TEXT", help="more for the kernel's command line")
    add("--spread", action="store_true", help="storageds over the guests instead of all on the first")
    add("--storage", type=int, default=2, metavar="N", help="storageds (default 2)")
    add("--fabric", choices=("verbs", "ucx"), default="verbs", help="how locks are reached (default verbs)")
    add("--data-device", default="eth0", metavar="NAME", help="UCX's device for data (default eth0: TCP)")
    add("--lease", default="10s", metavar="TIME", help="of the sessions (default 10s)")
    add("--allow", action="append", default=[], metavar="REGEX", help="kernel warnings that this run brings about by intent")
    add("--boot-timeout", type=float, metavar="S", help="for each guest to come up (default 60; with --kernel debug 300)")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: a new one in build/vm/runs)")
    add("--build", type=Path, metavar="DIR", help=argparse.SUPPRESS)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run", help="boot guests, start a cluster, run COMMAND", epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_guests(run)
    add = run.add_argument
    add("--on", choices=("first", "all"), default="first", help="where COMMAND runs (default first)")
    add("--timeout", type=float, default=600, metavar="S", help="for COMMAND; then its guests are ended (default 600)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="for COMMAND (DISTFUSE_*, UCX_*, GTEST_* are passed)")
    add("--keep", action="store_true", help="leave the guests running; scripts/vm down ends them")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="in this folder's path; no standard input")


def _add_shell(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shell = commands.add_parser("shell", help="a terminal on a guest of a run with --keep, or of a fresh one")
    _add_guests(shell)
    shell.add_argument("--run", dest="run_name", metavar="NAME", help="which run, if several are there")
    shell.add_argument("--on", type=int, default=1, metavar="N", dest="node", help="the guest (default 1)")
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="instead of a shell")


def _add_others(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, text in (
        ("fault", "cut N on|off, delay N MS, drop N PERCENT, kill N, stop N, continue N, stats"),
        ("status", "the runs that are there"),
        ("check", "whether guests can run on this machine; if not, why"),
        ("down", "end a run and its guests"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument("--run", dest="run_name", metavar="NAME", help="which run, if several are there")
        if name == "fault":
            parser.add_argument("words", nargs="+", metavar="WORD", help=text)


def _check(options: argparse.Namespace) -> None:
    if options.command[:1] == ["--"]:
        options.command = options.command[1:]
    if options.do == "run" and not options.command and not options.keep:
        raise VmError("no COMMAND: scripts/vm run ... -- COMMAND", EXIT_USAGE)
    if options.boot_timeout is None:
        options.boot_timeout = 300 if options.kernel == "debug" else 60
    for name, low, high in (("nodes", 1, 16), ("mounts", 0, 64), ("cpus", 1, 64), ("storage", 1, 64)):
        if not low <= getattr(options, name) <= high:
            raise VmError(f"--{name} must be from {low} to {high}", EXIT_USAGE)
    if options.icount and (options.cpus > 1 or options.nodes > 1):
        raise VmError("--icount is for one guest with one processor: leave --nodes and --cpus out", EXIT_USAGE)
    if options.mem < 512:
        raise VmError("--mem must be at least 512", EXIT_USAGE)
    if options.disk and options.disk < 64:
        raise VmError("--disk must be at least 64", EXIT_USAGE)
    for entry in getattr(options, "env", []):
        if "=" not in entry:
            raise VmError(f"--env {entry}: it must be NAME=VALUE", EXIT_USAGE)


def passed_environment(options: argparse.Namespace) -> dict[str, str]:
    """What COMMAND gets of our environment, and of --env."""
    prefixes = ("DISTFUSE_", "UCX_", "GTEST_", "OMPI_MCA_", "ASAN_", "TSAN_", "UBSAN_", "LSAN_")
    kept = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    kept.update(entry.split("=", 1) for entry in getattr(options, "env", []))
    return kept
