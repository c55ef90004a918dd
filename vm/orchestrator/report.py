# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, what it says at the end, and result.json."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

KEPT_RUNS = 20
SHOWN_PROBLEMS = 40  # a lockdep report alone has 200 lines; result.json has all


def say(text: str) -> None:
    """A line for a person, apart from COMMAND's output."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


@dataclass
class Report:
    """What is known of a run so far."""

    folder: Path
    command: list[str]
    began: float = field(default_factory=time.monotonic)
    problems: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)  # seconds since the start
    processor: dict[str, float] = field(default_factory=dict)  # processor seconds of all QEMUs at the same moments
    command_status: int | None = None

    def mark(self, name: str, processor: float) -> None:
        """A moment: `boot`, `mounted`, `command`."""
        self.times[name] = round(time.monotonic() - self.began, 2)
        self.processor[name] = round(processor, 2)

    def write(self, status: int) -> None:
        """result.json, and the last lines on standard error."""
        result = {
            "status": status,
            "command": self.command,
            "command_status": self.command_status,
            "problems": self.problems,
            "seconds": self.times,
            "processor_seconds": self.processor,
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        for problem in self.problems[:SHOWN_PROBLEMS]:
            say(f"NOT CLEAN: {problem}")
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            say(f"NOT CLEAN: and {more} more, in result.json")
        moments = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.times.items())
        say(f"{moments}; status {status}; everything of the run is in {self.folder}")


def new_folder(runs: Path, wanted: Path | None) -> Path:
    """Of this run. Of those in `runs` the latest are kept."""
    if wanted:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    old = sorted((path for path in runs.iterdir() if (path / "result.json").exists()), key=lambda path: path.stat().st_mtime)
    for path in old[: -KEPT_RUNS or None]:
        shutil.rmtree(path, ignore_errors=True)
    folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir()
    return folder.resolve()
