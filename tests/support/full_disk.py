"""`python -m tests.support.full_disk FOLDER MODULE …`: the same program, for which the disk under
FOLDER is full: in a mount namespace of its own, which needs no root."""

from __future__ import annotations

import os
import subprocess
import sys

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o size=64k full "$0" && exec "$@"'


def can_be_had() -> bool:
    """Whether this machine allows its users such namespaces."""
    try:
        tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


if __name__ == "__main__":
    folder, *module = sys.argv[1:]
    command = [*NAMESPACE, "sh", "-c", MOUNT, folder, sys.executable, "-m", *module]
    os.execvp(command[0], command)
