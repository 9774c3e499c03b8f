"""What engines and labeling programs may reach: their folders, and what they need of the system.

Campaigns bring models and inputs, and a check of them can have a gap. So every child process of a
worker is confined by the kernel: by Landlock, else by bubblewrap. `DPSTREAM_CONFINE` chooses how
strictly:

- *site*: reads the system except homes, temporary folders and secrets; writes to the worker's
  folder, shared memory and devices for GPUs and fabrics; TCP to all ports but those of the broker,
  the store and the web.
- *strict*: reads the folders of the operating system and of the program alone; no shared memory, no
  fabric, no TCP connection. For programs without MPI.
- *off*: not confined.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.confinement import landlock
from dpstream.shared.runtime.scratch import enclosing

Mode = Literal["strict", "site", "off"]
MODE, HIDE, PORTS = "DPSTREAM_CONFINE", "DPSTREAM_CONFINE_HIDE", "DPSTREAM_CONFINE_PORTS"
READ, WRITE = "DPSTREAM_CONFINE_READ", "DPSTREAM_CONFINE_WRITE"

SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/sbin", "/sys", "/usr")
HIDDEN = ("/tmp", "/var/tmp", "/run/secrets", "/var/run/secrets", "/run/user")
DATA = ".local/share"
"""Folder of a home in which desktops keep keyrings."""
PREFIX = ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "share")
"""What a program needs of the folder below which it is installed."""
SECRET_FILES = (
    "DPSTREAM_BROKER_KEY_FILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
)
DEVICES = ("null", "zero", "full", "random", "urandom", "ptmx", "pts")
GPUS = ("nvidia*", "dri", "kfd")
FABRICS = ("shm", "hugepages", "infiniband", "cxi*", "hfi1*", "knem", "xpmem", "gdrdrv")
SHARED_MEMORY = Path("/dev/shm")
WEB = frozenset({80, 443})
"""Also the service of a cloud's machine that hands out the machine's credentials."""
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671, "http": 80, "https": 443}
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Confinement:
    """How children of this process are confined."""

    mode: Mode
    means: Literal["landlock", "bubblewrap", "none"]
    abi: int = 0

    def __str__(self) -> str:
        if self.mode == "off":
            return "off"
        return f"{self.mode}, by {self.means}{f' ABI {self.abi}' if self.abi else ''}"

    @property
    def gaps(self) -> tuple[str, ...]:
        """What children may reach although the mode means to refuse it."""
        if self.means == "none":
            return ("files of this user", "connections", "signals", "other processes")
        if self.means == "bubblewrap":
            return () if self.mode == "strict" else ("connections",)
        found = []
        if self.abi < landlock.NETWORK_ABI:
            found.append("connections")
        if self.abi < landlock.SCOPE_ABI:
            found.append("signals")
        return tuple(found)


def confinement() -> Confinement:
    """By the environment and this machine. Raises SpecError for a mode that does not exist, and for
    *strict* where a machine cannot keep it."""
    mode = os.environ.get(MODE) or "site"
    if mode not in get_args(Mode):
        raise SpecError(f"{MODE}: {mode!r}: must be {', '.join(get_args(Mode))}")
    found = Confinement(mode, *_means(mode))  # type: ignore[arg-type]
    if mode == "strict" and found.gaps:
        raise SpecError(
            f"{MODE}=strict: this machine cannot refuse {', '.join(found.gaps)}: it needs Landlock "
            f"ABI {landlock.SCOPE_ABI} (Linux 6.12) or bubblewrap"
        )
    return found


@cache
def _means(mode: Mode) -> tuple[str, int]:
    if mode == "off":
        return "none", 0
    version = landlock.abi()
    if version >= landlock.LEAST_ABI:
        return "landlock", version
    return ("bubblewrap" if _bubblewrap_works() else "none"), 0


def _bubblewrap_works() -> bool:
    program = shutil.which("bwrap")
    if program is None:
        return False
    command = [program, "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, timeout=PROBE_SECONDS, check=False).returncode == 0
    return False


@contextmanager
def confined(
    folder: Path, command: Sequence[str] = (), reads: Collection[Path] = (), links: bool = True
) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """What confines a child that writes to `folder`, which exists, and reads `reads` and where the
    words of `command` are: words to put before its command, and descriptors of rulesets to which
    the child restricts itself (`landlock.restrict`). `links`: whether it may make symbolic links,
    by which a worker that opens the child's files would open others; only Landlock refuses them."""
    how = confinement()
    if how.means == "none":
        yield [], ()
        return
    reach = Reach.of(how.mode, folder, command, reads)
    if how.means == "bubblewrap":
        yield reach.bubblewrap(), ()
        return
    files = landlock.paths(reach.rules(landlock.WRITES if links else landlock.FILES_ONLY))
    try:
        network = (_ports(how.mode, _refused_ports()),) if how.abi >= landlock.NETWORK_ABI else ()
        yield [], (files, *network)
    finally:
        os.close(files)


@cache
def _ports(mode: Mode, refused: frozenset[int]) -> int:
    """One ruleset for all children: it has a rule for each port."""
    return landlock.ports(set() if mode == "strict" else set(range(1, 1 << 16)) - refused)


def _refused_ports() -> frozenset[int]:
    urls = filter(None, map(os.environ.get, ("DPSTREAM_BROKER", "DPSTREAM_STORE_ENDPOINT")))
    parts = [urlsplit(url) for url in urls]
    servers = {part.port or DEFAULT_PORTS.get(part.scheme, 443) for part in parts}
    further = filter(str.isdecimal, map(str.strip, os.environ.get(PORTS, "").split(",")))
    return WEB | servers | {int(port) for port in further}


@dataclass(frozen=True)
class Hidden:
    """Places that no child may reach, unless a rule for a place inside allows that."""

    places: frozenset[Path]

    @classmethod
    def by(cls, private: Path) -> Hidden:
        """Homes and the folders in which they are, temporary folders, the store, credentials, what
        the machine's settings name, and the folder in which the private ones of workers are."""
        places: list[str | Path] = [*HIDDEN, *_homes(), tempfile.gettempdir(), *_of_variable(HIDE)]
        places += filter(None, map(os.environ.get, SECRET_FILES))
        store = os.environ.get("DPSTREAM_STORE", "")
        if store and "://" not in store:
            places.append(store)
        resolved = {Path(place).resolve() for place in places} | {private.parent}
        return cls(frozenset(resolved - {Path("/")}))

    @cached_property
    def around(self) -> frozenset[Path]:
        """The folders in which they are."""
        return frozenset(folder for place in self.places for folder in place.parents)

    def spare(self, path: Path) -> bool:
        return path not in self.places and path not in self.around

    def outside(self, path: Path) -> Iterator[Path]:
        """`path`, or the parts of it outside of the hidden places."""
        if self.spare(path):
            yield path
        elif path not in self.places:
            with suppress(OSError), os.scandir(path) as entries:
                for entry in entries:
                    if not entry.is_symlink():
                        yield from self.outside(Path(entry.path))


@cache
def _system(mode: Mode, hidden: Hidden) -> tuple[Path, ...]:
    """What a child reads of the system. One list for all children: it takes a look at each folder
    in which hidden places are."""
    roots = SYSTEM if mode == "strict" else ("/",)
    return tuple(part for root in roots for part in hidden.outside(Path(root)))


@dataclass(frozen=True)
class Reach:
    """Paths of one child."""

    mode: Mode
    writable: tuple[Path, ...]
    readable: tuple[Path, ...]
    hidden: Hidden
    listed: Path
    """A folder of which only the names of files may be read: that of the package dpstream, which
    may be a user's project."""

    @classmethod
    def of(cls, mode: Mode, folder: Path, command: Sequence[str], reads: Collection[Path]) -> Reach:
        folder = folder.resolve()
        hidden = Hidden.by(enclosing(folder))
        package = Path(sys.modules["dpstream"].__file__ or "").parent
        own = [path.resolve() for path in _own_modules(package)]
        programs = _of_program(command, hidden)
        useful = [*_other_modules(package), *programs, *_of_path_variables()]
        readable = [
            *(path.resolve() for path in [*reads, *_of_variable(READ)]),
            *(path for path in own if path in hidden.places),  # a home that is the environment
            *(part for path in own for part in hidden.outside(path)),
            *filter(hidden.spare, (path.resolve() for path in useful)),
        ]
        further = [*_of_variable(WRITE), *(_sockets_of_mps() if mode == "site" else ())]
        writable = (folder, *(path.resolve() for path in further))
        return cls(mode, writable, tuple(dict.fromkeys(readable)), hidden, package.parent.resolve())

    def rules(self, writes: int) -> Iterator[tuple[Path, int]]:
        """For Landlock; `writes`: the rights in the child's own folder."""
        for path in (*_system(self.mode, self.hidden), Path("/proc"), *self.readable):
            if path != Path("/dev"):
                yield path, landlock.READS
        yield self.listed, landlock.LIST
        for path in self.writable:
            yield path, writes
        for path in (*_devices(*DEVICES), *self._further_devices()):
            yield path, landlock.WRITES if path == SHARED_MEMORY else landlock.DEVICE
        yield Path("/dev"), landlock.LIST

    def bubblewrap(self) -> list[str]:
        """The words before a command, whose working directory remains. In place of each hidden
        folder is an empty one."""
        words = [
            "bwrap",
            "--die-with-parent",
            "--unshare-pid",
            "--unshare-ipc",
            "--cap-drop",
            "ALL",
        ]
        if self.mode == "strict":
            words += ["--unshare-net"]
        for root in SYSTEM if self.mode == "strict" else ("/",):
            words += ["--ro-bind-try", root, root]
        words += ["--dev", "/dev", "--proc", "/proc"]
        for path in self._further_devices():
            words += ["--dev-bind", str(path), str(path)]
        folders = [str(path) for path in sorted(self.hidden.places) if path.is_dir()]
        for folder in folders:
            words += ["--tmpfs", folder]
        for path in self.hidden.places:
            if path.is_file():
                words += ["--ro-bind", os.devnull, str(path)]
        for path in self.readable:
            words += ["--ro-bind-try", str(path), str(path)]
        for path in self.writable:
            words += ["--bind-try", str(path), str(path)]
        for folder in folders:
            words += ["--remount-ro", folder]
        return [*words, "--"]

    def _further_devices(self) -> Iterator[Path]:
        yield from _devices(*GPUS)
        if self.mode == "site":
            yield from _devices(*FABRICS)


def _sockets_of_mps() -> Iterator[Path]:
    """Where processes that share a GPU find the daemon of CUDA MPS."""
    yield Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")


def _devices(*patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from Path("/dev").glob(pattern)


def _own_modules(package: Path) -> Iterator[Path]:
    """dpstream, and Python with what is installed in its environment."""
    root = Path(__file__).resolve().parents[3]
    yield from (package, root / "services", root / "shared")
    yield from (Path(sys.prefix), Path(sys.base_prefix))


def _other_modules(package: Path) -> Iterator[Path]:
    """The rest of Python's path without the working directory."""
    others = {Path.cwd(), package.parent}
    yield from (path for path in map(Path, sys.path) if path.is_absolute() and path not in others)


def _homes() -> Iterator[Path]:
    """This user's, the folder of their data, and those in which homes of others are."""
    homes = {Path(os.path.expanduser("~")).resolve()}
    with suppress(KeyError):  # a container's user may have no entry
        homes.add(Path(pwd.getpwuid(os.geteuid()).pw_dir).resolve())
    for home in homes:
        yield from (home, home / DATA)
        around = home.parent
        if not any(Path(root) in (around, *around.parents) for root in SYSTEM):
            yield around


def _of_program(command: Sequence[str], hidden: Hidden) -> Iterator[Path]:
    """Where the programs among the words of a command are installed."""
    for word in command:
        found = shutil.which(word)
        if found is None or os.sep not in found:
            continue
        program = Path(found).resolve()
        yield program
        yield program.parent
        if program.parent.name in ("bin", "sbin"):
            prefix = program.parent.parent
            is_hidden = not hidden.places.isdisjoint(prefix.parents)
            yield from (prefix / name for name in PREFIX) if is_hidden else (prefix,)


def _of_path_variables() -> Iterator[Path]:
    for name in ("PATH", "LD_LIBRARY_PATH"):
        yield from (Path(part) for part in os.environ.get(name, "").split(":") if part[:1] == "/")


def _of_variable(name: str) -> list[Path]:
    return [Path(part.strip()) for part in os.environ.get(name, "").split(",") if part.strip()]
