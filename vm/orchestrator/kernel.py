# SPDX-License-Identifier: Apache-2.0
"""Which kernel the guests boot: the distribution's, found or fetched without installing it; or the debug kernel of a cache. And
the tree that modules are built against."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import EXIT_USAGE, VmError


@dataclass(frozen=True)
class Kernel:
    """An image and the folder of its modules (the one with modules.dep)."""

    release: str
    image: Path
    modules: Path
    debug: bool = False


def debug_kernel() -> Kernel:
    """The debug kernel that was built into the cache. Raises VmError when there is none."""
    cache = os.environ.get("DISTFUSE_VM_CACHE") or os.path.expanduser("~/.cache/distfuse/vm")
    folder = Path(cache) / "kernel-debug"
    image, modules = folder / "bzImage", folder / "modules"
    if not image.exists() or not (modules / "modules.dep").exists():
        raise VmError(f"no debug kernel in {folder}: scripts/vm-kernel makes it", EXIT_USAGE)
    return Kernel((folder / "release").read_text(encoding="ascii").strip(), image, modules, True)


def build_tree(kernel: Kernel, cache: Path) -> Path:
    """What a module of this kernel is built against. Raises VmError.

    Of the debug kernel its own build; of the distribution's the package with its headers, installed, or fetched and unpacked below
    `cache`: package lists that were renewed since the machine was set up name a newer kernel than its headers.
    """
    if kernel.debug:
        return kernel.modules.parent / "build"
    for root in (Path("/"), cache / f"headers-{kernel.release}"):
        tree = root / "usr" / "src" / f"linux-headers-{kernel.release}"
        if (tree / "Module.symvers").exists():
            return tree
    if tree := _fetch_headers(cache, kernel.release):
        return tree
    raise VmError(f"no headers of {kernel.release}: apt-get install linux-headers-{kernel.release}")


def distribution_kernel(cache: Path) -> Kernel:
    """Debian's kernel.

    The current one of linux-image-amd64 if it is installed; else its package, fetched and unpacked below `cache`; else, with no
    package archive at hand, the newest 6.1 that was fetched or is installed. Only unpacked: no kernel of the machine changes.
    """
    wanted = _current_release()
    for candidate in (_installed(wanted), _unpacked(cache, wanted)):
        if candidate:
            return candidate
    if os.getuid() == 0:  # package lists that are not there, or are too old for the archive
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
        wanted = _current_release()
    if wanted and (fetched := _fetch(cache, wanted)):
        return fetched
    releases = [path.name[len("vmlinuz-") :] for path in Path("/boot").glob("vmlinuz-6.1*")]
    releases += [path.name for path in cache.glob("6.1*") if path.is_dir()]
    for release in sorted(releases, key=_version, reverse=True):
        if candidate := _unpacked(cache, release) or _installed(release):
            return candidate
    raise VmError("no kernel: linux-image-amd64 cannot be fetched (apt-get download) and none is in /boot")


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _current_release() -> str | None:
    """Of linux-image-amd64, as the package lists know it."""
    try:
        text = subprocess.run(
            ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return None
    found = re.findall(r"Depends: linux-image-(6\.1\.\S+-amd64)$", text, re.MULTILINE)
    return found[0] if found else None


def _kernel(release: str | None, root: Path) -> Kernel | None:
    if not release:
        return None
    image, modules = root / "boot" / f"vmlinuz-{release}", root / "lib" / "modules" / release
    if os.access(image, os.R_OK) and (modules / "modules.dep").exists():
        return Kernel(release, image, modules)
    return None


def _installed(release: str | None) -> Kernel | None:
    return _kernel(release, Path("/"))


def _unpacked(cache: Path, release: str | None) -> Kernel | None:
    return _kernel(release, cache / release) if release else None


def _fetch(cache: Path, release: str) -> Kernel | None:
    """Downloads and unpacks the package. None: it cannot be fetched."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready := _unpacked(cache, release):
            return ready
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.chmod(folder, 0o755)  # apt fetches as a user of its own
            root = Path(folder) / "root"
            if not _download([f"linux-image-{release}"], Path(folder), root):
                return None
            subprocess.run(["/sbin/depmod", "-b", str(root), release], check=True)
            shutil.rmtree(cache / release, ignore_errors=True)
            root.rename(cache / release)
    return _unpacked(cache, release)


def _download(names: list[str], folder: Path, root: Path) -> bool:
    """Fetches packages into `folder` and unpacks them into `root`. Whether that worked."""
    words = ["apt-get", "download", "-qq", *names]
    fetched = subprocess.run(words, cwd=folder, capture_output=True, check=False)
    packages = list(folder.glob("*.deb"))
    if fetched.returncode != 0 or len(packages) != len(names):
        return False
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    return True


def _fetch_headers(cache: Path, release: str) -> Path | None:
    """The build tree from its packages. None: they cannot be fetched."""
    cache.mkdir(parents=True, exist_ok=True)
    common = release.removesuffix("-amd64") + "-common"
    target = cache / f"headers-{release}"
    tree = Path("usr") / "src" / f"linux-headers-{release}"
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.chmod(folder, 0o755)  # apt fetches as a user of its own
            root = Path(folder) / "root"
            names = [f"linux-headers-{release}", f"linux-headers-{common}", "linux-kbuild-6.1"]
            if not _download(names, Path(folder), root):
                return None
            # It names the other package by its installed path.
            (root / tree / "Makefile").write_text(f"include {target}/usr/src/linux-headers-{common}/Makefile\n", encoding="ascii")
            shutil.rmtree(target, ignore_errors=True)
            root.rename(target)
    return target / tree
