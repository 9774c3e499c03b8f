"""A campaign's results as a folder: models, data, report, and a molecular dynamics example.

With `full` the folder is also a store of its own: ledger, manifests, results and the shared labels
they point to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpstream.export.archive import archive_of, archived, write_archive
from dpstream.export.checksums import write_checksums
from dpstream.export.dataset_card import CARD, write_card
from dpstream.export.dataset_formats import DATABASE, write_formats
from dpstream.export.rendering import render
from dpstream.export.results import CampaignResults
from dpstream.report import write_report
from dpstream.services.coordinator.ledger.archive_mark import MARKS
from dpstream.services.explorer.lammps.script import data_file, parameter_words
from dpstream.services.labeler.codes import CODES
from dpstream.services.trainer.repulsion import table_text
from dpstream.services.trainer.training_input import TABLE, TrainingRun, build_input
from dpstream.shared.atoms.dataset import write_deepmd, write_extxyz
from dpstream.shared.atoms.frames import Batch, Frame, canonical
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import MemberTrained
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import ROOMS, Ref, campaign_uri, stable_seed

MARKER = ".dpstream-export.json"
"""Names the campaign that a folder is an export of. No object's key begins with a dot."""
PARTS = ("models", "dataset", "audit", "held-out", "md-example")
"""Folders that an export makes, and replaces when it is repeated."""
README = "README.txt"
"""The last file of an export: where it exists, the export is complete."""
ELSEWHERE = "give another folder with dpstream export --output"
EXAMPLE_STEPS = 2000


def export(
    store: Store,
    campaign: str,
    folder: Path,
    full: bool = False,
    *,
    archive: bool = False,
    all_formats: bool = False,
    licence: str = "",
) -> list[str]:
    """Write the campaign's models, data sets, report and an MD example into `folder`; with `full`
    also the campaign itself with all labels it points to, so that the folder can be a store. With
    `archive` all this is also one zip file beside the folder. `all_formats`: the dataset in the
    forms of other programs, too. `licence`: of the dataset, for its card. The lines returned say
    what is where.

    Raises SpecError for a folder or an archive that holds anything but an earlier export of this
    campaign, or that cannot be written; NotFound where the store has no such campaign.
    """
    results = CampaignResults.of(store, campaign)
    with written_into(folder):
        if archive:
            _check_archive(folder, results)
        prepare(folder, results)
        lines = list(_written(results, folder, full or archive, licence, all_formats))
        if archive:
            path = write_archive(folder)
            lines.append(f"{path}: all of it, with the ledger; unpacked it works as --store")
        return lines


@contextmanager
def written_into(folder: Path) -> Iterator[None]:
    """Turns errors of files into errors about `folder`."""
    try:
        yield
    except OSError as error:
        raise SpecError(
            f"{error.filename or folder}: cannot be written: {error.strerror}"
        ) from error


def _written(
    results: CampaignResults, folder: Path, full: bool, licence: str, all_formats: bool
) -> Iterator[str]:
    yield from _models(results, folder / "models")
    yield from _data(results, folder, licence, all_formats)
    write_report(results.store, results.campaign, folder / "report.html")
    yield f"{folder / 'report.html'}: report of the campaign"
    if results.best is not None:
        yield from _example(results, folder / "md-example", results.best)
    if full:
        yield _copy_campaign(results, folder)
    write_checksums(folder, (*PARTS, "report.html"))
    _write_readme(results, folder, full)
    yield f"{folder / README}: describes the files and how to run them"


# ----------------------------------------------------------------------------------- the folder


def prepare(folder: Path, results: CampaignResults) -> None:
    """An empty folder, or one that this campaign was exported to before."""
    identity = _identity(results)
    plan = results.view.overview.plan
    number = {} if plan is None else {"plan": plan.number}
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder}: is a file; {ELSEWHERE}")
    if (room := _kept_room(results.store, folder)) is not None:
        raise SpecError(f"{folder}: is within {room}, a folder of the store; {ELSEWHERE}")
    if folder.exists() and any(folder.iterdir()) and not _is_of(identity, _marker(folder)):
        raise SpecError(
            f"{folder}: contains files that are not from an export of {results.campaign}; "
            f"{ELSEWHERE}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(json.dumps(identity | number) + "\n")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / README).unlink(missing_ok=True)


def _kept_room(store: Store, folder: Path) -> Path | None:
    """The part of the store's own folder that `folder` is in; files written there would pass for
    objects."""
    if not isinstance(store, FolderStore):
        return None
    rooms = [store.root.resolve() / room for room in ROOMS]
    return next((room for room in rooms if folder.resolve().is_relative_to(room)), None)


def is_exported(folder: Path, plan: int) -> bool:
    """Whether a complete export of a campaign under this plan is there."""
    return (folder / README).exists() and _marker(folder).get("plan", 1) == plan


def _identity(results: CampaignResults) -> dict[str, str]:
    return {"campaign": results.campaign, "spec": Ref.to("spec", results.spec_bytes).sha256}


def _is_of(identity: dict[str, str], marker: dict[str, object]) -> bool:
    return identity.items() <= marker.items()


def _check_archive(folder: Path, results: CampaignResults) -> None:
    """Raises `SpecError` if the archive's place is taken by anything but an earlier archive of this
    campaign."""
    path = archive_of(folder)
    if path.exists() and not _is_of(_identity(results), _document(archived(folder, MARKER))):
        raise SpecError(f"{path}: is not an earlier archive of {results.campaign}; {ELSEWHERE}")


def _marker(folder: Path) -> dict[str, object]:
    try:
        return _document((folder / MARKER).read_bytes())
    except OSError:
        return {}


def _document(data: bytes) -> dict[str, object]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _models(results: CampaignResults, folder: Path) -> Iterator[str]:
    """The final model and the newest committee, each also as it was before compression."""
    named = [(f"committee-{m.member}", m) for m in results.committee]
    if results.final is not None:
        named.insert(0, ("final", results.final))
    folder.mkdir()
    for name, member in named:
        download(results.store, member.model, folder / model_file(name, member))
        if member.frozen != member.model:
            suffix = Path(member.frozen.uri).suffix
            download(results.store, member.frozen, folder / f"{name}-frozen{suffix}")
    if not named:
        yield "no committee is complete yet: no models"
        return
    if results.final is not None:
        yield f"{folder / model_file('final', results.final)}: the final model"
    if results.committee:
        version, count = results.committee[0].version, len(results.committee)
        yield f"{folder}: {count} models of committee {version}"


def model_file(name: str, member: MemberTrained) -> str:
    return f"{name}{Path(member.model.uri).suffix}"


def download(store: Store, ref: Ref, path: Path) -> None:
    path.write_bytes(fetch(store, ref))


def _data(results: CampaignResults, folder: Path, licence: str, all_formats: bool) -> Iterator[str]:
    trained = results.training_set()
    systems = write_deepmd(trained, folder / "dataset" / "deepmd", results.spec.type_map)
    if trained:
        write_extxyz(trained, folder / "dataset" / "dataset.extxyz")
    names = [f"deepmd/{system.name}" for system in systems]
    _write_input(results, folder / "dataset", names)
    yield f"{folder / 'dataset'}: {len(trained)} labelled frames, for DeePMD-kit and as extxyz"
    if trained and all_formats:
        yield write_formats(trained, folder / "dataset", results.spec.type_map)
    if trained:
        write_card(results, trained, folder / "dataset", licence)
        yield f"{folder / 'dataset' / CARD}: what is in the dataset, and how it was computed"
    for name, items in (("audit", results.audit_set()), ("held-out", results.test_set())):
        if items:
            (folder / name).mkdir()
            write_extxyz(items, folder / name / f"{name}.extxyz")
            yield f"{folder / name}: {len(items)} labelled frames never trained on"


def _write_input(results: CampaignResults, folder: Path, systems: Sequence[str]) -> None:
    """Repeats the training of the best model on the exported dataset: `dp train input.json`."""
    if results.best is None:
        return
    command = results.view.committees.commands[results.best.task]
    run = TrainingRun(
        type_map=results.spec.type_map,
        systems=tuple(systems),
        steps=command.steps,
        seed=command.seed,
        member=command.member,
        batch_atoms=command.batch_atoms,
        rate=command.rate,
    )
    document = build_input(results.spec.training, run)
    (folder / "input.json").write_text(json.dumps(document, indent=1) + "\n")
    table = table_text(results.spec, command.files, results.fetch)
    if table is not None:
        (folder / TABLE).write_text(table)


# ----------------------------------------------------------------------------------- an MD run


def _example(results: CampaignResults, folder: Path, best: MemberTrained) -> Iterator[str]:
    """A LAMMPS run with the best model, from a starting structure of the campaign."""
    frame = _start(results)
    if len(frame.species) == 1:  # one atom alone has no dynamics
        return
    model = model_file("final" if results.final else "committee-0", best)
    folder.mkdir()
    data = data_file(frame, results.spec.type_map, results.spec.md.masses)
    (folder / "structure.data").write_text(data)
    text = lammps_input(results.spec, frame, Path("../models") / model)
    (folder / "in.lammps").write_text(text)
    _write_structure(frame, folder / "structure.extxyz")
    yield f"molecular dynamics with the model: cd {folder} && lmp -in in.lammps"


def _start(results: CampaignResults) -> Frame:
    assert results.history.submitted is not None
    systems = results.history.submitted.systems
    ref = systems[results.spec.stages[0].systems[0]][0]
    return canonical(Batch.loads(results.fetch(ref.batch))[ref.index]).frame


def _write_structure(frame: Frame, path: Path) -> None:
    from ase.io import write  # deferred: ASE is slow to import

    from dpstream.shared.atoms.frames import to_ase

    write(path, to_ase(frame), format="extxyz")


def lammps_input(spec: Spec, frame: Frame, model: Path) -> str:
    """A complete LAMMPS input: thermostatted dynamics of `frame` at constant volume, from
    `structure.data`. Units `metal`."""
    return render(
        "in.lammps.j2",
        name=spec.name,
        vacuum=frame.cell is None,
        model=" ".join([str(model), *parameter_words(frame)]),
        type_map=spec.type_map,
        timestep=spec.md.timestep,
        tau_t=spec.md.tau_t,
        temperature=spec.verification.nve_temperature,
        seed=stable_seed(spec.seed, "md-example"),
        steps=EXAMPLE_STEPS,
        length_ps=f"{EXAMPLE_STEPS * spec.md.timestep:g}",
    )


# ----------------------------------------------------------------------------------- a store


def _copy_campaign(results: CampaignResults, folder: Path) -> str:
    """The campaign and the shared labels it points to. Objects never change, so the copies of an
    earlier export stay."""
    store = results.store
    prefix = campaign_uri(results.campaign) + "/"
    of_this_store = (prefix + "lock", prefix + "requests/", f"{prefix}{MARKS}/")
    keys = [key for key in store.list(prefix) if not key.startswith(of_this_store)]
    lives = results.history.lives.values()
    keys += [life.accepted.label.uri for life in lives if life.accepted is not None]
    for key in keys:
        if not (folder / key).exists():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            store.download(key, folder / key)
    return f"{folder}: works as --store, e.g. dpstream status --store {folder}"


def _write_readme(results: CampaignResults, folder: Path, full: bool) -> None:
    recipe, best = results.recipe, results.best
    text = render(
        "README.txt.j2",
        campaign=results.campaign,
        final=results.final,
        model=model_file("final" if results.final else "committee-0", best) if best else None,
        committee=results.committee,
        example=(folder / "md-example" / "in.lammps").exists(),
        all_formats=(folder / "dataset" / DATABASE).exists(),
        has_input=(folder / "dataset" / "input.json").exists(),
        type_map=" ".join(results.spec.type_map),
        recipe=recipe,
        method=CODES[recipe.code].method(recipe.settings) if recipe else "",
        semi_empirical=recipe is not None and CODES[recipe.code].semi_empirical(recipe.settings),
        full=full,
    )
    (folder / README).write_text(text)
