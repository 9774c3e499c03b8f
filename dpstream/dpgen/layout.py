"""A campaign as the folders that `dpgen run` leaves, for scripts that expect them.

    init/                               labels that no iteration asked for
    iter.000000/00.train/000/           frozen_model.pb, lcurve.out; graph.000.pb points there
    iter.000000/01.model_devi/          cur_job.json
    iter.000000/02.fp/data.000/         labels by system, DeePMD's npy
    record.dpgen                        the steps that are done

An iteration is one committee version in one stage. Trajectories are not kept, so 01.model_devi has
none, and 02.fp has no calculations.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpstream.dpgen.unfinished import LAST_STEP
from dpstream.export import Harvest, download, model_file, prepare, written_into
from services.coordinator.history import Life
from shared.dataset import Labelled, write_deepmd
from shared.frames import frame_key
from shared.messages import MemberTrained
from shared.ports import Store
from shared.spec import Spec, Stage

TRAINED = 2
"""The last step of a training."""
Iteration = tuple[int, int]
"""Stage, and committee version."""


def export_layout(store: Store, campaign: str, folder: Path) -> list[str]:
    """Write the campaign into `folder`; the lines returned say what is where.

    Raises SpecError for a folder that holds anything but an earlier export of this campaign, or
    that cannot be written; NotFound where the store has no such campaign.
    """
    harvest = Harvest.of(store, campaign)
    with written_into(folder):
        prepare(folder, harvest)
        for old in (*folder.glob("iter.*"), folder / "init", folder / "final"):
            shutil.rmtree(old, ignore_errors=True)
        return list(_written(harvest, folder))


def _written(harvest: Harvest, folder: Path) -> Iterator[str]:
    asked = _asked(harvest)
    iterations = _iterations(harvest)
    for number, iteration in enumerate(iterations):
        place = folder / f"iter.{number:06d}"
        _write_models(harvest, harvest.members.get(iteration[1], {}), place / "00.train")
        _write_job(harvest.spec, iteration[0], place / "01.model_devi")
        _write_labels(harvest, asked.get(iteration, []), place / "02.fp")
    steps = [(number, LAST_STEP) for number in range(len(iterations))]
    newest = max(harvest.members, default=0)
    if newest and newest not in {version for _, version in iterations}:
        place = folder / f"iter.{len(iterations):06d}"
        _write_models(harvest, harvest.members[newest], place / "00.train")
        steps.append((len(iterations), TRAINED))
    _write_record(steps, folder / "record.dpgen")
    yield f"{folder}: {len(steps)} iterations"
    yield from _write_rest(harvest, asked, folder)


def _iterations(harvest: Harvest) -> list[Iteration]:
    commands = harvest.history.explored.values()
    return list(dict.fromkeys((command.stage, command.version) for command in commands))


def _asked(harvest: Harvest) -> dict[Iteration, list[Life]]:
    """Accepted training labels by the iteration whose trajectories they come from."""
    asked: dict[Iteration, list[Life]] = defaultdict(list)
    for life in harvest.history.lives.values():
        if life.purpose != "train" or life.accepted is None:
            continue
        if life.chosen and life.selection and life.chosen.trajectory in harvest.history.explored:
            asked[life.selection.stage, life.chosen.version].append(life)
    return asked


# --------------------------------------------------------------------------------------- one folder


def _write_models(harvest: Harvest, members: Mapping[int, MemberTrained], folder: Path) -> None:
    for number, member in sorted(members.items()):
        own = folder / f"{number:03d}"
        own.mkdir(parents=True)
        model = model_file("frozen_model", member)
        download(harvest.store, member.model, own / model)
        download(harvest.store, member.lcurve, own / "lcurve.out")
        graph = folder / f"graph.{number:03d}{Path(model).suffix}"
        graph.symlink_to(Path(own.name) / model)


def _write_job(spec: Spec, stage: int, folder: Path) -> None:
    job, names = spec.stages[stage], list(spec.systems)
    folder.mkdir(parents=True)
    text = json.dumps(
        {
            "sys_idx": [_index(names, system) for system in job.systems],
            "temps": job.temperatures,
            **_pressures(job),
            "nsteps": job.md.steps,
            "trj_freq": job.md.every,
            "ensemble": job.md.ensemble,
            "dt": job.md.timestep,
        },
        indent=1,
    )
    (folder / "cur_job.json").write_text(text + "\n")


def _pressures(job: Stage) -> dict[str, Sequence[float]]:
    return {"press": job.pressures} if job.pressures else {}


def _write_labels(harvest: Harvest, lives: Sequence[Life], folder: Path) -> None:
    folder.mkdir(parents=True)
    names, systems = list(harvest.spec.systems), defaultdict[int, list[Life]](list)
    for life in lives:
        assert life.chosen is not None
        system = harvest.history.explored[life.chosen.trajectory].condition.system
        systems[_index(names, system)].append(life)
    for index, found in systems.items():
        items = harvest.labelled(found)
        write_deepmd(items, folder / f"data.{index:03d}", harvest.spec.type_map)


def _index(names: Sequence[str], system: str) -> int:
    """Of a system: DP-GEN's own where the name has it."""
    found = re.fullmatch(r"sys-(\d+)", system)
    return int(found[1]) if found else names.index(system)


def _write_record(last: Sequence[tuple[int, int]], path: Path) -> None:
    lines = [f"{number} {step}\n" for number, end in last for step in range(end + 1)]
    path.write_text("".join(lines))


def _write_rest(
    harvest: Harvest, asked: Mapping[Iteration, Sequence[Life]], folder: Path
) -> Iterator[str]:
    """Labels of no iteration, and the final model."""
    told = {life.ref.key for lives in asked.values() for life in lives}
    rest: list[Labelled] = [
        item for item in harvest.training_set() if frame_key(item.frame) not in told
    ]
    write_deepmd(rest, folder / "init", harvest.spec.type_map)
    yield f"{folder / 'init'}: {len(rest)} labels that no iteration asked for"
    yield f"{folder}/iter.*/02.fp/data.*: {len(told)} labels"
    if harvest.final is not None:
        model = folder / "final" / model_file("frozen_model", harvest.final)
        model.parent.mkdir()
        download(harvest.store, harvest.final.model, model)
        yield f"{model}: the final model"
