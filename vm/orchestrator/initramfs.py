# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, vm/guest/first, and the modules that it takes to reach the machine's root."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from pathlib import Path

from .errors import VmError
from .kernel import Kernel

# What vm/guest/first mounts with.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


def build(kernel: Kernel, first: Path, cache: Path) -> Path:
    """The initramfs of this kernel, made if `cache` does not hold it. Raises VmError when busybox is missing."""
    busybox = _static_busybox()
    modules = _with_dependencies(kernel.modules, MODULES)
    parts = [(f"modules/{path.name.removesuffix('.xz')}", _content(kernel.modules / path), 0o644) for path in modules]
    listed = "".join(f"{path.name.removesuffix('.xz')}\n" for path in modules)
    parts += [
        ("modules.list", listed.encode(), 0o644),
        ("bin/busybox", busybox.read_bytes(), 0o755),
        ("init", first.read_bytes(), 0o755),
    ]
    archive = _cpio(parts)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(archive)
        temporary.rename(path)
    return path


def _static_busybox() -> Path:
    path = shutil.which("busybox")
    if not path:
        raise VmError("busybox is missing: scripts/setup installs busybox-static")
    return Path(path)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _with_dependencies(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Paths below `folder` in the order to load. A module that is built in needs no file."""
    needs: dict[str, tuple[Path, list[Path]]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[_name(path)] = (Path(path), [Path(entry) for entry in dependencies.split()])
    builtin = {_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    order: list[Path] = []
    for name in names:
        if name in builtin:
            continue
        if name not in needs:
            raise VmError(f"the kernel has no module {name}: {folder}")
        path, dependencies = needs[name]
        # modules.dep lists what is needed first last.
        for entry in [*reversed(dependencies), path]:
            if entry not in order:
                order.append(entry)
    return order


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".xz").removesuffix(".ko").replace("-", "_")


def _cpio(files: list[tuple[str, bytes, int]]) -> bytes:
    """A newc archive."""
    out = bytearray()
    folders = sorted({str(parent) for path, _, _ in files for parent in Path(path).parents if str(parent) != "."})
    entries = [(folder, b"", 0o040755) for folder in folders]
    entries += [(path, data, 0o100000 | mode) for path, data, mode in files]
    entries.append(("TRAILER!!!", b"", 0))
    for number, (path, data, mode) in enumerate(entries, 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4)
        out += data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
