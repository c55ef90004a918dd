# SPDX-License-Identifier: Apache-2.0
"""Unpacks a bzImage on the host, once: under TCG a guest would spend four seconds on that at each boot."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from pathlib import Path

from .kernel import Kernel

_SETUP_SECTORS = 0x1F1
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
# The note with the 32-bit entry point at which QEMU starts an ELF kernel (PVH).
_PVH_NOTES = [struct.pack("<III", 4, size, 18) + b"Xen\0" for size in (4, 8)]


def boot_image(kernel: Kernel, cache: Path) -> Path:
    """What to give to QEMU: the unpacked kernel in `cache`, or the image itself if it is packed or made in another way."""
    if kernel.debug:
        return kernel.image  # the code of its direct entry is instrumented by KASAN, and runs before KASAN's shadow is there
    stat = kernel.image.stat()
    path = cache / f"vmlinux-{kernel.release}-{stat.st_size}-{stat.st_mtime_ns}"
    if path.exists():
        return path
    unpacked = _unpack(kernel.image.read_bytes())
    if not unpacked:
        return kernel.image
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f"vmlinux-{kernel.release}-*"):
        old.unlink()
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(unpacked)
    temporary.rename(path)
    return path


def _unpack(image: bytes) -> bytes | None:
    """The ELF file inside, if it is packed by xz or gzip and can be started by QEMU."""
    if image[0x202:0x206] != b"HdrS":
        return None
    start = ((image[_SETUP_SECTORS] or 4) + 1) * 512 + struct.unpack_from("<I", image, _PAYLOAD_OFFSET)[0]
    length = struct.unpack_from("<I", image, _PAYLOAD_LENGTH)[0]
    payload = image[start : start + length - 4]  # the last four bytes are the unpacked length
    try:
        if payload.startswith(b"\x1f\x8b"):
            elf = zlib.decompressobj(wbits=31).decompress(payload)
        else:
            elf = lzma.LZMADecompressor().decompress(payload)
    except (lzma.LZMAError, zlib.error):
        return None
    return elf if elf.startswith(b"\x7fELF") and any(note in elf for note in _PVH_NOTES) else None
