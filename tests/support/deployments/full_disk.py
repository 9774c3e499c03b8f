"""Disks that are full.

`python -m tests.support.deployments.full_disk FOLDER MODULE …`: the same program, for which the
disk under FOLDER is full: in a mount namespace of its own, which needs no root. All processes see a
`small_disk`, which needs root and a loop device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o size=64k full "$0" && exec "$@"'


def can_be_had() -> bool:
    """Whether this machine allows its users such namespaces."""
    try:
        tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """`folder` is a disk of its own, of this size (`3G`). Raises CalledProcessError."""
    image = folder.with_name(f"{folder.name}.img")
    folder.mkdir(parents=True)
    subprocess.run(["truncate", "--size", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The disk of `folder` has no free space."""
    ballast, disk = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, (disk.f_bavail - 64) * disk.f_frsize)
        file.seek(0, os.SEEK_END)
        while True:  # until nothing is left
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


if __name__ == "__main__":
    folder, *module = sys.argv[1:]
    command = [*NAMESPACE, "sh", "-c", MOUNT, folder, sys.executable, "-m", *module]
    os.execvp(command[0], command)
