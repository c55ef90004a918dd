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

# What vm/guest/first loads, by list.
MODULES = {
    "root": ("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    "guest": ("virtio_net", "virtio_console", "fuse"),
    # rxe asks for crc32 by the name of its algorithm, so nothing else would load it.
    "rdma": ("crc32_generic", "rdma_rxe", "rdma_cm", "rdma_ucm", "ib_uverbs"),
}


def build(kernel: Kernel, first: Path, cache: Path) -> Path:
    """The initramfs of this kernel, made if `cache` does not hold it. Raises VmError when busybox or a module is missing."""
    parts: list[tuple[str, bytes, int]] = [
        ("bin/busybox", _static_busybox().read_bytes(), 0o755),
        ("init", first.read_bytes(), 0o755),
    ]
    listed: list[Path] = []
    for name, modules in MODULES.items():
        new = [path for path in _with_dependencies(kernel.modules, modules) if path not in listed]
        listed += new
        parts.append((f"modules.{name}", "".join(f"{_plain(path)}\n" for path in new).encode(), 0o644))
        parts += [(f"modules/{_plain(path)}", _content(kernel.modules / path), 0o644) for path in new]
    archive = _cpio(parts)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(archive)
        temporary.rename(path)
    return path


def _plain(path: Path) -> str:
    return path.name.removesuffix(".xz")


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
