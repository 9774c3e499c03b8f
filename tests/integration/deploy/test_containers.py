"""What the images run, without a container engine: the wheel built by the Dockerfile's command out
of what it copies, nothing beside it but the packages of its lock, started by its entrypoint as an
unprivileged user in the image's environment alone."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from dpstream.deploy.devcluster.free_ports import free_ports
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from tests.support.deployments.dockerfile import ROOT, Dockerfile, pins, read
from tests.support.servers.s3_server import BUCKET

NOBODY = 65532
PROMPT = 60.0


@dataclass(frozen=True)
class Image:
    """What an image holds, in a folder."""

    file: Dockerfile
    venv: Path
    scratch: Path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return self.execute([*self.file.entrypoint(), *arguments], environment)

    def execute(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """As the container would: its environment, its user, nothing on standard input."""
        own = {
            **self.file.runtime.environment(),
            "PATH": f"{self.venv}/bin:{os.defpath}",
            "HOME": str(self.scratch),
        }
        if "DPSTREAM_SCRATCH" in own:
            own["DPSTREAM_SCRATCH"] = str(self.scratch)
        return subprocess.Popen(
            [str(self.venv / "bin" / command[0]), *command[1:]],
            env=own | environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **interpreter()[1],
        )


@cache
def interpreter() -> tuple[str, dict[str, Any]]:
    """A Python of this version, and the options of Popen under which somebody without rights runs
    it; where nobody but root may read the packages, they are run as root."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = str(sys._base_executable)  # type: ignore[attr-defined]
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    for candidate in (base, f"/usr/local/bin/python{version}", f"/usr/bin/python{version}"):
        reading = [candidate, "-c", f"open({pika.__file__!r})"]
        try:
            if subprocess.run(reading, capture_output=True, check=False, **nobody).returncode == 0:
                return candidate, nobody
        except OSError:
            continue
    return base, {}


@pytest.fixture(scope="module")
def builder(request: pytest.FixtureRequest) -> Path:
    """Where the pinned build requirements are; fetched once and kept in pytest's cache."""
    lock = ROOT / "requirements" / "build.txt"
    kept = request.config.cache.mkdir("-".join(["build", *pins(lock).values()])) / "packages"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as fresh:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", fresh]
            subprocess.run([*command, "--requirement", str(lock)], check=True, timeout=300)
            shutil.copytree(fresh, kept)
    return kept


LARGE = [pytest.param(name, marks=pytest.mark.soak) for name in ("trainer", "explorer")]


@pytest.fixture(scope="module", params=["coordinator", "labeler", *LARGE])
def image(request: pytest.FixtureRequest, builder: Path) -> Iterator[Image]:
    file = read(request.param)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        wheel = build_wheel(file, root / "build", builder)
        venv = make_venv(file, root / "venv", wheel)
        scratch = root / "scratch"
        scratch.mkdir(mode=0o700)
        if interpreter()[1]:
            os.chown(scratch, NOBODY, NOBODY)
        yield Image(file, venv, scratch)


def build_wheel(file: Dockerfile, context: Path, builder: Path) -> Path:
    """By the Dockerfile's own `pip wheel`, from what it copies before."""
    for sources, target in file.build.copied():
        for name in sources:
            if not name.startswith("requirements/"):
                copy_as_docker_does(ROOT / name, context / target)
    command = next(run for run in file.build.all("RUN") if run.startswith("pip wheel"))
    words = shlex.split(command.partition(" && ")[0])
    wheels = context / "wheels"
    words[words.index("/wheels")] = str(wheels)
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=context,
        env={"PATH": os.defpath, "HOME": str(context), "PYTHONPATH": str(builder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return next(wheels.glob("*.whl"))


def copy_as_docker_does(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, symlinks=True, ignore=ignored)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def make_venv(file: Dockerfile, venv: Path, wheel: Path) -> Path:
    """An environment of the wheel and the locked packages, which are linked, not copied."""
    subprocess.run([interpreter()[0], "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python3.*/site-packages"))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(packages)
    for name in pins(file.lock()):
        distribution = metadata.distribution(name)
        for entry in distribution.files or ():
            place = packages / (entry if entry.parts[0] == ".." else entry.parts[0])
            real = Path(str(distribution.locate_file(place.relative_to(packages))))
            if not place.exists() and place.name != "__pycache__" and real.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(real)
    return venv


@pytest.mark.soak
def test_it_explains_itself(image: Image) -> None:
    said, _ = (process := image.start("--help")).communicate(timeout=PROMPT)
    assert process.returncode == 0, said
    assert "DPSTREAM_BROKER" in said


def test_without_settings_it_ends_with_one_line(image: Image) -> None:
    said, _ = (process := image.start()).communicate(timeout=PROMPT)
    assert process.returncode == 2, said
    assert len(said.splitlines()) == 1
    assert "DPSTREAM_" in said


def test_the_wheel_has_all_files_of_the_service(image: Image) -> None:
    packages = next(image.venv.glob("lib/python3.*/site-packages"))
    folder = ROOT / "services" / image.file.service
    for file in folder.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert (packages / "dpstream" / file.relative_to(ROOT)).exists(), file.relative_to(ROOT)


def test_it_starts_is_healthy_and_stops(
    image: Image, rabbit_node: RabbitNode, seaweed: SeaweedServer
) -> None:
    port = str(free_ports(1)[0])
    process = image.start(
        DPSTREAM_BROKER=rabbit_node.url,
        DPSTREAM_BROKER_PREFIX=f"{uuid.uuid4().hex}-",
        DPSTREAM_STORE=f"s3://{BUCKET}/{uuid.uuid4().hex}",
        DPSTREAM_STORE_ENDPOINT=seaweed.endpoint,
        DPSTREAM_STORE_REGION="us-east-1",
        DPSTREAM_STORE_ADDRESSING="path",
        DPSTREAM_STORE_ACCESS_KEY=seaweed.access_key,
        DPSTREAM_STORE_SECRET_KEY=seaweed.secret_key,
        DPSTREAM_HTTP_PORT=port,
    )
    try:
        wait_until_healthy(image, process, port)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PROMPT)
        assert process.returncode == 0, said[-3000:]
        password = urlsplit(rabbit_node.url).password
        assert password is not None
        assert password not in said
        assert seaweed.secret_key not in said
    finally:
        process.kill()
        process.wait()


def wait_until_healthy(image: Image, process: subprocess.Popen[str], port: str) -> None:
    """Until the HEALTHCHECK's own command says so."""
    deadline = time.monotonic() + PROMPT
    while time.monotonic() < deadline:
        check = image.execute(image.file.health(), {"DPSTREAM_HTTP_PORT": port})
        complaint, _ = check.communicate(timeout=PROMPT)
        if check.returncode == 0:
            return
        assert process.poll() is None, process.communicate()[0]
    raise AssertionError(complaint)
