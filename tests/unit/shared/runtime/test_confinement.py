"""What the kernel refuses to engines, and what it allows; with `off` all of it succeeds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpstream.commands.doctor import doctor
from dpstream.shared.errors import EngineError, SpecError
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.confinement import children as module
from dpstream.shared.runtime.confinement import landlock
from dpstream.shared.runtime.confinement.children import Confinement, Hidden, Reach, confinement
from dpstream.shared.runtime.scratch import private_folder

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[3] / "support" / "workers"
Start = Callable[[str], ChildProcess]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("private")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What this machine can is found out again."""
    module._means.cache_clear()
    yield
    module._means.cache_clear()


@pytest.fixture(params=["landlock", "bubblewrap"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "landlock":
        if landlock.abi() < landlock.SCOPE_ABI:
            pytest.skip("needs Landlock ABI 6 (Linux 6.12)")
        return "landlock"
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    if not module._bubblewrap_works():
        pytest.skip("needs bubblewrap and user namespaces")
    return "bubblewrap"


@pytest.fixture
def start(
    tmp_path: Path, home: Path, means: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ChildProcess]]:
    """Starts a prying child in a worker's private folder, in a mode."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.delenv("DPSTREAM_CONFINE_READ")
    monkeypatch.delenv("DPSTREAM_CONFINE_WRITE")
    with ExitStack() as stack:

        def one(mode: str) -> ChildProcess:
            monkeypatch.setenv("DPSTREAM_CONFINE", mode)
            folder = stack.enter_context(private_folder(tmp_path / "scratch"))
            child = ChildProcess("prying_child", folder / "engine")
            stack.callback(child.kill)
            return child

        yield one


def refused(child: ChildProcess, operation: str, **arguments: Any) -> bool:
    """Whether the kernel refuses it, or what it is about does not exist for the child."""
    try:
        child.call(operation, arguments)
    except EngineError as error:
        if error.kind not in REFUSALS:
            raise
        return True
    return False


REFUSALS = {
    "PermissionError",
    "OSError",
    "FileNotFoundError",
    "ProcessLookupError",
    "ConnectionRefusedError",
}
MODES = pytest.mark.parametrize("mode", ["strict", "site", "off"])


@MODES
def test_a_home_can_neither_be_read_nor_written(start: Start, home: Path, mode: str) -> None:
    child, confined = start(mode), mode != "off"
    assert refused(child, "read", path=str(home / "letter")) == confined
    assert refused(child, "write", path=str(home / "note")) == confined
    copy = str(child.scratch / "letter")
    assert refused(child, "link", path=str(home / "letter"), to=copy) == confined
    assert (home / "note").exists() != confined


@MODES
def test_homes_of_others_cannot_be_read(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    home, other = tmp_path / "homes" / "own", tmp_path / "homes" / "other"
    for each in (home, other):
        each.mkdir(parents=True)
    (other / "letter").write_text("private")
    monkeypatch.setattr(module, "HIDDEN", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(home))
    assert refused(start(mode), "read", path=str(other / "letter")) == (mode != "off")


@pytest.mark.parametrize("home", ["/", "/usr/sbin", "/opt/own"])
def test_a_home_of_the_system_hides_no_more_of_it(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    places = Hidden.by(Path("/tmp/x")).places
    assert places.isdisjoint(map(Path, ["/", "/usr", "/opt"]))


@MODES
def test_a_machine_may_hide_further_folders(
    start: Start, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    (place,) = [path for path in [Path("/etc/hostname")] if path.exists()]
    monkeypatch.setenv("DPSTREAM_CONFINE_HIDE", f"/nowhere, {place}")
    assert refused(start(mode), "read", path=str(place)) == (mode != "off")


@MODES
def test_the_working_directory_is_the_childs_own(start: Start, mode: str) -> None:
    child = start(mode)
    assert child.call("folder", {}) == str(child.scratch)


def test_of_a_program_in_a_home_its_installation_alone_is_read(home: Path, tmp_path: Path) -> None:
    program = home / ".local" / "bin" / "toy"
    (home / ".local" / "lib").mkdir(parents=True)
    program.parent.mkdir()
    shutil.copy("/bin/true", program)
    reach = Reach.of("site", tmp_path / "task", [str(program)], [])
    found = {path.relative_to(home) for path in reach.readable if home in path.parents}
    assert Path(".local/lib") in found
    assert found.isdisjoint(map(Path, [".local", ".local/share", ".local/state"]))


@MODES
def test_the_folder_of_another_worker_can_neither_be_read_nor_written(
    start: Start, tmp_path: Path, mode: str
) -> None:
    child, confined = start(mode), mode != "off"
    with private_folder(tmp_path / "scratch") as another:
        (another / "model.pb").write_text("model")
        assert refused(child, "read", path=str(another / "model.pb")) == confined
        assert refused(child, "write", path=str(another / "model.pb")) == confined


@MODES
def test_the_workers_own_folder_is_there_for_all_tasks(start: Start, mode: str) -> None:
    child = start(mode)
    child.start()
    task = child.scratch.parent / "tasks" / "1"
    task.mkdir(parents=True)
    child.call("write", {"path": str(task / "result")})
    assert child.call("read", {"path": str(task / "result")}) == "was here"


@MODES
def test_the_environment_of_the_parent_is_not_read(start: Start, mode: str) -> None:
    path = f"/proc/{os.getpid()}/environ"
    assert refused(start(mode), "read", path=path) == (mode != "off")


@MODES
def test_a_sibling_and_the_parent_are_not_killed(start: Start, mode: str) -> None:
    child, confined = start(mode), mode != "off"
    with sleeping() as sibling:
        assert refused(child, "kill", pid=sibling.pid) == confined
        assert (sibling.poll() is None) == confined or sibling.wait(10) == -9
    if confined:
        assert refused(child, "kill", pid=os.getpid())


@MODES
def test_a_sibling_gets_no_limits(start: Start, mode: str) -> None:
    child, means = start(mode), mode != "off"
    with sleeping() as sibling:
        assert refused(child, "limit", pid=sibling.pid) == means
        limits = psutil.Process(sibling.pid).rlimit(psutil.RLIMIT_CPU)
        assert (limits == (1, 1)) == (not means)


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> Iterator[Any]:
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()
        yield server.getsockname()


@MODES
def test_broker_and_store_are_out_of_reach(
    start: Start, means: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    confined = mode == "strict" or (mode, means) == ("site", "landlock")
    with listening() as (_, broker), listening() as (_, store), listening() as (_, rank):
        monkeypatch.setenv("DPSTREAM_BROKER", f"amqp://user:pass@127.0.0.1:{broker}/%2F")
        monkeypatch.setenv("DPSTREAM_STORE_ENDPOINT", f"http://127.0.0.1:{store}")
        child = start(mode)
        for port in (broker, store):
            assert refused(child, "connect", port=port) == confined
            assert refused(child, "connect", port=port, protocol=MULTIPATH) == confined
            assert refused(child, "send", port=port) == confined
        assert refused(child, "connect", port=rank) == (mode == "strict")


MULTIPATH = 262
"""MPTCP, which falls back to TCP."""


@MODES
def test_abstract_sockets_of_others_are_out_of_reach(start: Start, means: str, mode: str) -> None:
    confined = mode == "strict" or (mode, means) == ("site", "landlock")
    name = f"dpstream-{os.getpid()}-{mode}"
    with listening(socket.AF_UNIX, f"\0{name}"):
        assert refused(start(mode), "connect_abstract", name=name) == confined


@MODES
def test_shared_memory_is_for_programs_with_mpi(start: Start, mode: str) -> None:
    path = Path("/dev/shm") / f"dpstream-{os.getpid()}"
    try:
        with suppress(EngineError):
            start(mode).call("write", {"path": str(path)})
        assert path.exists() == (mode != "strict")
    finally:
        path.unlink(missing_ok=True)


@MODES
def test_the_system_can_be_read(start: Start, mode: str) -> None:
    child = start(mode)
    assert child.call("read", {"path": "/etc/hostname"}) == Path("/etc/hostname").read_text()
    assert "processor" in child.call("read", {"path": "/proc/cpuinfo"})


@MODES
def test_an_engine_makes_no_links_for_its_worker_to_follow(
    start: Start, means: str, home: Path, mode: str
) -> None:
    child = start(mode)
    confined = mode != "off" and means == "landlock"
    result = str(child.scratch / "result.npz")
    assert refused(child, "symlink", path=str(home / "letter"), to=result) == confined


@pytest.mark.parametrize("mode", ["strict", "site"])
def test_a_machine_may_allow_further_folders(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    software, results = tmp_path / "software", tmp_path / "results"
    for folder in (software, results):
        folder.mkdir()
        (folder / "file").write_text("here")
    monkeypatch.setenv("DPSTREAM_CONFINE_READ", f"{software}, {tmp_path / 'nowhere'}")
    monkeypatch.setenv("DPSTREAM_CONFINE_WRITE", str(results))
    child = start(mode)
    assert child.call("read", {"path": str(software / "file")}) == "here"
    assert refused(child, "write", path=str(software / "file"))
    child.call("write", {"path": str(results / "file")})


@pytest.mark.parametrize("inside", [".", "share/state"])
def test_a_home_in_the_environment_of_python_does_not_hide_it(
    start: Start, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    monkeypatch.setenv("HOME", str(Path(sys.prefix) / inside))
    assert start("site").call("read", {"path": "/proc/self/comm"})


# ------------------------------------------------------------------------------ what a machine can


@pytest.mark.parametrize(
    ("abi", "gaps"),
    [(2, ("connections", "signals")), (4, ("signals",)), (6, ()), (7, ())],
)
def test_what_an_older_kernel_cannot_refuse_is_stated(
    monkeypatch: pytest.MonkeyPatch, abi: int, gaps: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DPSTREAM_CONFINE", "site")
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    assert confinement() == Confinement("site", "landlock", abi)
    assert confinement().gaps == gaps
    monkeypatch.setenv("DPSTREAM_CONFINE", "strict")
    if gaps:
        with pytest.raises(SpecError, match=f"strict: this machine cannot refuse {gaps[0]}"):
            confinement()


def test_without_landlock_and_bubblewrap_nothing_is_confined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert confinement().means == "none"
    assert "files of this user" in confinement().gaps


@pytest.mark.parametrize(
    ("mode", "abi", "state", "detail"),
    [
        ("site", 7, "works", "site, by landlock ABI 7"),
        ("site", 4, "works", "site, by landlock ABI 4; not refused: signals"),
        ("site", 0, "absent", "site, by none; not refused: files of this user, connections"),
        ("strict", 0, "missing", "cannot refuse files of this user"),
        ("off", 7, "works", "off: "),
    ],
)
def test_the_doctor_says_how_children_are_confined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, abi: int, state: str, detail: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DPSTREAM_CONFINE", mode)
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    finding = doctor._confinement()
    assert finding.state == state
    assert detail in finding.detail + finding.fix


def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_CONFINE", "lax")
    with pytest.raises(SpecError, match="'lax': must be strict, site, off"):
        confinement()
