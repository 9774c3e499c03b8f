"""Builds the images of all services: `.venv/bin/python deploy/images.py [TARGET…]`.

The builder is docker, podman or buildah, the first that works here. Of the CUDA variants only the
packages are resolved. The machine's configuration of pip, apt and proxies serves the builds and
gets into no image. Where buildah cannot pull the base image, debootstrap makes one; this needs root
and a Debian mirror among apt's sources.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TARGETS = ("coordinator", "labeler", "cp2k", "espresso", "trainer", "explorer")
SERVICES = {"cp2k": "labeler", "espresso": "labeler"}
"""The service in an image, where it is not the target's name."""
BUILDERS = ("docker", "podman", "buildah")
DEBIAN = "bookworm"
OWN_BASE = f"localhost/dpstream-base:{DEBIAN}"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
LEFT_OUT = (
    "etc/hostname",
    "etc/resolv.conf",
    "usr/lib/python3*/EXTERNALLY-MANAGED",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/lib/apt/lists/*_*",
    "var/log/bootstrap.log",
)
"""Traces of this machine and of debootstrap, and the file that keeps pip from installing."""
KEEP_NOTHING = """\
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
"""As in the official images of Debian; apt's caches name its mirrors."""
MOUNTED = ("etc/apt/sources.list", "etc/apt/apt.conf")
"""Empty in the image; a build sees this machine's."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
FETCHING = ("http", "https", "Check-Date", "Check-Valid-Until", "Retries")
"""What of apt's `Acquire` settings a build needs."""
CUDA = """
FROM {base}
COPY requirements /requirements
RUN pip install --dry-run --no-deps --no-cache-dir \\
    --requirement /requirements/trainer-cuda.txt --requirement /requirements/explorer-cuda.txt
"""
PIP_OPTION = re.compile(r"^\S+\.([\w-]+)=('.*'|\".*\")$", re.MULTILINE)
PROXY = re.compile(r"(https?|ftp|all|no)_proxy", re.IGNORECASE)


def find_builder() -> str | None:
    """The first builder that lists its images: docker needs its daemon for that. buildah only for
    root, as whom debootstrap runs."""
    for name in BUILDERS:
        allowed = name != "buildah" or os.geteuid() == 0
        if allowed and shutil.which(name) and _succeeds(name, "images", "--quiet"):
            return name
    return None


def tag(target: str) -> str:
    return f"dpstream-{target}:{version()}"


def version() -> str:
    return _first(r'^version = "(.+)"$', ROOT / "pyproject.toml")


def _first(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    assert found is not None, f"{file}: no {pattern}"
    return found[1]


def exists(builder: str, image: str) -> bool:
    return _succeeds(builder, "inspect", "--type=image", image)


def size(builder: str, image: str) -> str:
    return output(builder, "images", "--format", "{{.Size}}", image).strip()


def output(*command: str, given: str | None = None) -> str:
    """Standard output of a command; the last lines of its log if it fails.

    Raises:
        SystemExit: it fails.
    """
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        log = (done.stdout + done.stderr).splitlines()[-30:]
        sys.exit("\n".join([*log, f"{' '.join(command[:2])}: status {done.returncode}"]))
    return done.stdout


# ---------------------------------------------------------------------------------------- the base


def find_base(builder: str) -> str:
    """The Dockerfile's base image, or our own if buildah cannot pull that."""
    base = _first("^ARG BASE=(.+)$", DOCKERFILE)
    if builder != "buildah" or _succeeds("buildah", "pull", "--policy=missing", base):
        return base
    if not exists(builder, OWN_BASE):
        with tempfile.TemporaryDirectory() as folder:
            make_base(Path(folder, "debian"))
    return OWN_BASE


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def make_base(root: Path) -> None:
    """Debian with its Python, as an image."""
    chosen = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
    output("debootstrap", *chosen, DEBIAN, str(root), mirrors()[0].split()[1])
    for file in (each for pattern in LEFT_OUT for each in root.glob(pattern)):
        file.unlink()
    (root / "usr/bin/python").symlink_to("python3")
    (root / "etc/apt/apt.conf.d/keep-nothing").write_text(KEEP_NOTHING)
    for name in MOUNTED:
        (root / name).write_text("")
    container = output("buildah", "from", "scratch").strip()
    output("buildah", "add", container, str(root), "/")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    output("buildah", "config", "--env", path, container)
    output("buildah", "commit", "--rm", container, OWN_BASE)


def mirrors() -> list[str]:
    """Lines of a sources.list: where apt here finds packages of the base's Debian.

    Raises:
        SystemExit: nowhere.
    """
    line = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ("Created-By: Packages", "Origin: Debian")
    found = output("apt-get", "indextargets", "--format", line, *wanted).splitlines()
    fitting = [each for each in found if each.split()[2].startswith(DEBIAN)]
    return fitting or sys.exit(f"no base image: apt's sources have no {DEBIAN}")


# -------------------------------------------------------------------------------------- the builds


def build(builder: str, base: str, images: tuple[str, ...]) -> None:
    """Build and report each image. Packages are installed in stages that end in no image, so that
    what is mounted for pip leaves no mount points; the builder keeps these stages in its cache."""
    common = ["--build-arg", f"BASE={base}", *_options(builder)]
    with tempfile.TemporaryDirectory() as folder:
        pip, apt = _mounts(builder, base, Path(folder))
        for target in images:
            begun = time.monotonic()
            packages = ["--target", f"build-{SERVICES.get(target, target)}", *pip]
            output(builder, "build", *common, *packages, "--file", str(DOCKERFILE), ".")
            named = ["--target", target, "--tag", tag(target), *apt]
            output(builder, "build", *common, *named, "--file", str(DOCKERFILE), ".")
            print(f"{tag(target)}: {_since(begun)}, {size(builder, tag(target))}", flush=True)
        begun, trial = time.monotonic(), tag("cuda-trial")
        line = [*common, *pip, "--tag", trial, "--file", "-", "."]
        output(builder, "build", *line, given=CUDA.format(base=base))
        output(builder, "rmi", trial)
        print(f"CUDA: {_since(begun)}, all packages found", flush=True)


def _since(begun: float) -> str:
    return f"{time.monotonic() - begun:.0f} s"


def _options(builder: str) -> list[str]:
    if builder == "buildah":
        return ["--isolation=chroot", "--network=host", "--layers"]
    if builder == "podman":
        return ["--network=host"]
    # The others pass proxies on by themselves. An image keeps none of these arguments.
    return [f"--build-arg={name}" for name in os.environ if PROXY.fullmatch(name)]


def _mounts(builder: str, base: str, folder: Path) -> tuple[list[str], list[str]]:
    """Options that mount what pip and what apt need, for the stages that run them; generated files
    are in `folder`. docker cannot mount."""
    if builder == "docker":
        return [], []
    pip, apt = _pip_files(folder), _apt_files(folder) if base == OWN_BASE else {}
    return _volumes(pip), _volumes(apt)


def _volumes(places: dict[Path, str]) -> list[str]:
    return [f"--volume={here}:{there}:ro" for here, there in places.items()]


def _pip_files(folder: Path) -> dict[Path, str]:
    """What pip is configured to here, in a file of `folder`, and what that names, by places."""
    configuration = pip_configuration()
    file = folder / "pip.conf"
    file.write_text(configuration)
    named = {path: str(path) for path in named_paths(configuration)}
    return {file: "/etc/pip.conf", **named}


def pip_configuration() -> str:
    """One configuration file for all files and variables that configure pip here."""
    listed = output(sys.executable, "-m", "pip", "config", "list")
    found = PIP_OPTION.findall(listed)[::-1]  # variables are listed first and override files
    options = {name: ast.literal_eval(value) for name, value in found if name != "config-file"}
    return "[global]\n" + "".join(
        f"{name} = {' '.join(value.split())}\n" for name, value in options.items()
    )


def named_paths(configuration: str) -> Iterator[Path]:
    """Certificates, folders of packages, and local indexes with the files beside their pages."""
    for word in configuration.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            yield path if path == Path(word) else path.parent


def _apt_files(folder: Path) -> dict[Path, str]:
    """How apt here fetches packages, in files of `folder`, by places."""
    settings = output("apt-config", "dump", *(f"Acquire::{name}" for name in FETCHING))
    (folder / "apt.conf").write_text(settings)
    (folder / "sources.list").write_text("".join(f"{line}\n" for line in mirrors()))
    files = {folder / Path(place).name: f"/{place}" for place in MOUNTED}
    return files | ({AUTHORITIES: str(AUTHORITIES)} if AUTHORITIES.exists() else {})


def main(images: tuple[str, ...]) -> None:
    builder = find_builder()
    if builder is None:
        print("neither docker nor podman nor (as root) buildah works here: no image is built")
        return
    begun = time.monotonic()
    base = find_base(builder)
    if exists(builder, base):
        print(f"{builder} builds on {base}: {_since(begun)}, {size(builder, base)}", flush=True)
    build(builder, base, images)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or TARGETS)
