"""A campaign as the folders that `dpgen run` leaves, for scripts that expect them.

    init/                               labels of no iteration
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

from dpstream.dpgen.resume import LAST_STEP
from dpstream.export.folder import download, model_file, prepare, written_into
from dpstream.export.results import CampaignResults
from dpstream.services.coordinator.views.frames import FrameHistory
from dpstream.shared.atoms.dataset import write_deepmd
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.messages import MemberTrained
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec

TRAINED = 2
"""The last step of a training."""
Iteration = tuple[int, int]
"""Stage, and committee version."""


def export_layout(store: Store, campaign: str, folder: Path) -> list[str]:
    """Write the campaign into `folder`; the lines returned say what is where.

    Raises SpecError for a folder that holds anything but an earlier export of this campaign, or
    that cannot be written; NotFound where the store has no such campaign.
    """
    results = CampaignResults.of(store, campaign)
    with written_into(folder):
        prepare(folder, results)
        for old in (*folder.glob("iter.*"), folder / "init", folder / "final"):
            shutil.rmtree(old, ignore_errors=True)
        return list(_written(results, folder))


def _written(results: CampaignResults, folder: Path) -> Iterator[str]:
    requested = _requested(results)
    iterations = _iterations(results)
    for number, iteration in enumerate(iterations):
        place = folder / f"iter.{number:06d}"
        _write_models(results, results.view.committees.members(iteration[1]), place / "00.train")
        _write_job(results.spec, iteration[0], place / "01.model_devi")
        _write_labels(results, requested.get(iteration, []), place / "02.fp")
    steps = [(number, LAST_STEP) for number in range(len(iterations))]
    versions = results.view.committees.versions.values()
    newest = max((version.number for version in versions if version.members), default=0)
    if newest and newest not in {version for _, version in iterations}:
        place = folder / f"iter.{len(iterations):06d}"
        _write_models(results, results.view.committees.members(newest), place / "00.train")
        steps.append((len(iterations), TRAINED))
    _write_record(steps, folder / "record.dpgen")
    yield f"{folder}: {len(steps)} iterations"
    yield from _write_rest(results, requested, folder)


def _iterations(results: CampaignResults) -> list[Iteration]:
    commands = results.history.explored.values()
    return list(dict.fromkeys((command.stage, command.version) for command in commands))


def _requested(results: CampaignResults) -> dict[Iteration, list[FrameHistory]]:
    """Accepted training labels by the iteration whose trajectories they come from."""
    requested: dict[Iteration, list[FrameHistory]] = defaultdict(list)
    for life in results.history.lives.values():
        if life.purpose != "train" or life.accepted is None:
            continue
        if life.chosen and life.selection and life.chosen.trajectory in results.history.explored:
            requested[life.selection.stage, life.chosen.version].append(life)
    return requested


# --------------------------------------------------------------------------------------- one folder


def _write_models(results: CampaignResults, members: Sequence[MemberTrained], folder: Path) -> None:
    for member in members:
        own = folder / f"{member.member:03d}"
        own.mkdir(parents=True)
        model = model_file("frozen_model", member)
        download(results.store, member.model, own / model)
        download(results.store, member.lcurve, own / "lcurve.out")
        graph = folder / f"graph.{member.member:03d}{Path(model).suffix}"
        graph.symlink_to(Path(own.name) / model)


def _write_job(spec: Spec, stage: int, folder: Path) -> None:
    job, names = spec.stages[stage], list(spec.systems)
    folder.mkdir(parents=True)
    text = json.dumps(
        {
            "sys_idx": [_index(names, system) for system in job.systems],
            "temps": job.temperatures,
            **({"press": job.pressures} if job.pressures else {}),
            "nsteps": job.md.steps,
            "trj_freq": job.md.every,
            "ensemble": job.md.ensemble,
            "dt": job.md.timestep,
        },
        indent=1,
    )
    (folder / "cur_job.json").write_text(text + "\n")


def _write_labels(results: CampaignResults, lives: Sequence[FrameHistory], folder: Path) -> None:
    folder.mkdir(parents=True)
    names, systems = list(results.spec.systems), defaultdict[int, list[FrameHistory]](list)
    for life in lives:
        assert life.chosen is not None
        system = results.history.explored[life.chosen.trajectory].condition.system
        systems[_index(names, system)].append(life)
    for index, found in systems.items():
        items = results.labelled(found)
        write_deepmd(items, folder / f"data.{index:03d}", results.spec.type_map)


def _index(names: Sequence[str], system: str) -> int:
    """Of a system: DP-GEN's own where the name has it."""
    found = re.fullmatch(r"sys-(\d+)", system)
    return int(found[1]) if found else names.index(system)


def _write_record(last: Sequence[tuple[int, int]], path: Path) -> None:
    lines = [f"{number} {step}\n" for number, end in last for step in range(end + 1)]
    path.write_text("".join(lines))


def _write_rest(
    results: CampaignResults, requested: Mapping[Iteration, Sequence[FrameHistory]], folder: Path
) -> Iterator[str]:
    """Labels of no iteration, and the final model."""
    chosen = {life.ref.key for lives in requested.values() for life in lives}
    rest = [item for item in results.training_set() if frame_key(item.frame) not in chosen]
    write_deepmd(rest, folder / "init", results.spec.type_map)
    yield f"{folder / 'init'}: {len(rest)} labels of no iteration"
    yield f"{folder}/iter.*/02.fp/data.*: {len(chosen)} labels"
    if results.final is not None:
        model = folder / "final" / model_file("frozen_model", results.final)
        model.parent.mkdir()
        download(results.store, results.final.model, model)
        yield f"{model}: the final model"
