"""Runs built images as a cluster's security policy demands: as an unprivileged user without
capabilities, with a root that cannot be written; only /tmp and /scratch can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.images import output, tag

CONTAINER = (
    *("--rm", "--network=host", "--read-only", "--tmpfs=/tmp", "--tmpfs=/scratch"),
    *("--user=65532:65532", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
)
CONFINED = """
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for place in tmp scratch; do
    [ ! -d "$root/$place" ] || mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/$place"
done
mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$root/dev"
for device in full null random urandom zero; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/dev/shm"
mount -o remount,ro "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""
"""The same by hand: buildah runs nothing with a read-only root."""
NAMESPACES = ("--mount", "--pid", "--ipc", "--fork", "--kill-child", "--propagation=private")


@dataclass(frozen=True)
class Image:
    target: str
    builder: str
    settings: dict[str, Any]
    """The image's own: Env, Entrypoint, User."""
    root: Path | None
    """The mounted file system, if the builder is buildah."""

    @property
    def environment(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.settings["Env"])

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The image's service."""
        return self.execute([*self.settings["Entrypoint"], *arguments], **environment)

    def execute(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """A program in the image, in the image's environment."""
        if self.root is None:
            given = [f"--env={name}" for name in environment]
            program = [f"--entrypoint={command[0]}", tag(self.target), *command[1:]]
            own = ["--read-only-tmpfs=false"] if self.builder == "podman" else []
            line = [self.builder, "run", *CONTAINER, *own, *given, *program]
            around: dict[str, str] = dict(os.environ)
        else:
            line = ["unshare", *NAMESPACES, "sh", "-ec", CONFINED, "sh", str(self.root), *command]
            around = self.environment
        return subprocess.Popen(
            line,
            env=around | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def terminate(self, process: subprocess.Popen[str]) -> None:
        """SIGTERM to the service: docker and podman pass it on, `unshare` does not."""
        process.send_signal(signal.SIGTERM)
        if self.root is not None:
            for child in psutil.Process(process.pid).children():
                child.send_signal(signal.SIGTERM)


@contextmanager
def opened(builder: str, target: str) -> Iterator[Image]:
    """A built image, ready to run."""
    name = tag(target)
    if builder != "buildah":
        (found,) = json.loads(output(builder, "image", "inspect", name))
        yield Image(target, builder, found["Config"], None)
        return
    found = json.loads(output(builder, "inspect", "--type=image", name))
    container = output(builder, "from", "--pull=false", name).strip()
    try:
        root = Path(output(builder, "mount", container).strip())
        yield Image(target, builder, found["OCIv1"]["config"], root)
    finally:
        output(builder, "rm", container)
