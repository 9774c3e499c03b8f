"""A campaign's yield as a folder: models, data, report, and a molecular dynamics run to begin with.

With `full` the folder is a store of its own besides: ledger, manifests, results and the shared
labels they point to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpstream.report import write_report
from dpstream.submission import check_submitted
from services.coordinator.history import History, Life
from services.coordinator.ledger import heard_and_decided
from services.coordinator.state import NEVER_LEARNED
from services.explorer.md_script import data_file, parameter_words
from services.labeler.codes import CODES
from services.trainer.repulsion import table_text
from services.trainer.training_input import TABLE, Run, build_input
from shared.context import fetch
from shared.dataset import Labelled, load_dataset, write_deepmd, write_extxyz
from shared.errors import SpecError
from shared.folder_store import FolderStore
from shared.frames import Batch, Frame, canonical, decode_labelled
from shared.messages import MemberTrained, Message, ModelsReady, Train
from shared.ports import Store
from shared.spec import Spec
from shared.values import ROOMS, Recipe, Ref, campaign_uri, stable_seed

MARKER = ".dpstream-export.json"
"""Says which campaign a folder is an export of. No object's key begins with a dot."""
PARTS = ("models", "dataset", "audit", "held-out", "md-example")
"""Folders that an export makes, and makes anew when it is repeated."""
README = "README.txt"
"""An export's last file: it is whole where this is there."""
EXAMPLE_STEPS = 2000
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # plain text
)


def export(store: Store, campaign: str, folder: Path, full: bool = False) -> list[str]:
    """Write the campaign's models, data sets, report and an MD example into `folder`; with `full`
    also the campaign itself with all labels it points to, so that the folder can be a root. The
    lines returned say what is where.

    Raises SpecError for a folder that holds anything but an earlier export of this campaign, or
    that cannot be written; NotFound where the store has no such campaign.
    """
    harvest = Harvest.of(store, campaign)
    with written_into(folder):
        prepare(folder, harvest)
        return list(_written(harvest, folder, full))


@contextmanager
def written_into(folder: Path) -> Iterator[None]:
    """What goes wrong with files is wrong with `folder`."""
    try:
        yield
    except OSError as error:
        raise SpecError(
            f"{error.filename or folder}: cannot be written: {error.strerror}"
        ) from error


def _written(harvest: Harvest, folder: Path, full: bool) -> Iterator[str]:
    yield from _models(harvest, folder / "models")
    yield from _data(harvest, folder)
    write_report(harvest.store, harvest.campaign, folder / "report.html")
    yield f"{folder / 'report.html'}: how it came about"
    if harvest.best is not None:
        yield from _example(harvest, folder / "md-example", harvest.best)
    if full:
        yield _copy_campaign(harvest, folder)
    _write_readme(harvest, folder, full)
    yield f"{folder / README}: what is what, and how to run it"


# ----------------------------------------------------------------------------------- what there is


@dataclass
class Harvest:
    """What a campaign has to give, from its ledger."""

    store: Store
    campaign: str
    spec_bytes: bytes
    history: History
    members: dict[int, dict[int, MemberTrained]]
    """By version and number."""
    committee: list[MemberTrained]
    """Members of the newest complete committee."""
    final: MemberTrained | None
    commands: dict[str, Train]

    @staticmethod
    def of(store: Store, campaign: str) -> Harvest:
        spec_bytes = store.get(campaign_uri(campaign, "spec.json"))
        messages = list(heard_and_decided(store, campaign))
        members, final, commands = _trained(messages)
        version = max(
            (e.committee.version for e in messages if isinstance(e, ModelsReady)), default=0
        )
        committee = [member for _, member in sorted(members.get(version, {}).items())]
        history = History.of(messages)
        check_submitted(store, campaign, history.submitted)
        return Harvest(store, campaign, spec_bytes, history, members, committee, final, commands)

    @cached_property
    def spec(self) -> Spec:
        return Spec.model_validate_json(self.spec_bytes)

    @property
    def best(self) -> MemberTrained | None:
        """The final model, or else the first of the newest committee."""
        return self.final or (self.committee[0] if self.committee else None)

    @property
    def recipe(self) -> Recipe | None:
        return self.history.submitted.recipe if self.history.submitted else None

    def fetch(self, ref: Ref) -> bytes:
        return fetch(self.store, ref)

    def training_set(self) -> list[Labelled]:
        """Everything trained on, oldest first, then labels no dataset version holds yet."""
        datasets = self.history.datasets
        known = load_dataset(self.fetch, datasets[-1].manifest) if datasets else []
        fresh = self.labelled(
            life
            for life in self.history.lives.values()
            if life.purpose not in NEVER_LEARNED and life.trained is None
        )
        return [*known, *fresh]

    def audit_set(self) -> list[Labelled]:
        """Labels never trained on, by frame key."""
        return self.labelled(x for x in self.history.lives.values() if x.purpose == "audit")

    def labelled(self, lives: Iterable[Life]) -> list[Labelled]:
        accepted = {life.ref.key: life for life in lives if life.accepted is not None}
        return [self._item(accepted[key]) for key in sorted(accepted)]

    def _item(self, life: Life) -> Labelled:
        assert life.accepted is not None
        origin = life.chosen.trajectory if life.chosen else ""
        weight = life.chosen.weight if life.chosen else 1.0
        return Labelled(*decode_labelled(self.fetch(life.accepted.label)), origin, weight)

    def test_set(self) -> list[Labelled]:
        return load_dataset(self.fetch, self.history.test) if self.history.test else []


def _trained(
    messages: Sequence[Message],
) -> tuple[dict[int, dict[int, MemberTrained]], MemberTrained | None, dict[str, Train]]:
    """Members by version and number, the final model, and the commands by task."""
    commands: dict[str, Train] = {}
    members: dict[int, dict[int, MemberTrained]] = {}
    final: MemberTrained | None = None
    for message in messages:
        if isinstance(message, Train):
            commands[message.task] = message
        elif isinstance(message, MemberTrained) and message.task in commands:
            if commands[message.task].final:
                final = final or message
            else:
                members.setdefault(message.version, {}).setdefault(message.member, message)
    return members, final, commands


# ----------------------------------------------------------------------------------- the folder


def prepare(folder: Path, harvest: Harvest) -> None:
    """An empty folder, or one that this campaign was exported to before."""
    identity = {"campaign": harvest.campaign, "spec": Ref.to("spec", harvest.spec_bytes).sha256}
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder}: is a file; name a folder to write to")
    if (room := _kept_room(harvest.store, folder)) is not None:
        raise SpecError(
            f"{folder}: is within {room}, where the campaigns keep what they know; "
            "name another folder with --output"
        )
    if folder.exists() and any(folder.iterdir()) and _marker(folder) != identity:
        raise SpecError(
            f"{folder}: holds something else than an export of {harvest.campaign}; "
            "name another folder with --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(json.dumps(identity) + "\n")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / README).unlink(missing_ok=True)


def _kept_room(store: Store, folder: Path) -> Path | None:
    """The part of the store's own folder that `folder` is in; what is written there would be taken
    for objects."""
    if not isinstance(store, FolderStore):
        return None
    rooms = [store.root.resolve() / room for room in ROOMS]
    return next((room for room in rooms if folder.resolve().is_relative_to(room)), None)


def _marker(folder: Path) -> object:
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _models(harvest: Harvest, folder: Path) -> Iterator[str]:
    """The final model and the newest committee, each also as it was before compression."""
    named = [(f"committee-{m.member}", m) for m in harvest.committee]
    if harvest.final is not None:
        named.insert(0, ("final", harvest.final))
    folder.mkdir()
    for name, member in named:
        download(harvest.store, member.model, folder / model_file(name, member))
        if member.frozen != member.model:
            suffix = Path(member.frozen.uri).suffix
            download(harvest.store, member.frozen, folder / f"{name}-frozen{suffix}")
    if not named:
        yield "no committee is complete yet: no models"
        return
    if harvest.final is not None:
        yield f"{folder / model_file('final', harvest.final)}: the final model"
    if harvest.committee:
        version, count = harvest.committee[0].version, len(harvest.committee)
        yield f"{folder}: {count} models of committee {version}"


def model_file(name: str, member: MemberTrained) -> str:
    return f"{name}{Path(member.model.uri).suffix}"


def download(store: Store, ref: Ref, path: Path) -> None:
    path.write_bytes(fetch(store, ref))


def _data(harvest: Harvest, folder: Path) -> Iterator[str]:
    trained = harvest.training_set()
    systems = write_deepmd(trained, folder / "dataset" / "deepmd", harvest.spec.type_map)
    if trained:
        write_extxyz(trained, folder / "dataset" / "dataset.extxyz")
    names = [f"deepmd/{system.name}" for system in systems]
    _write_input(harvest, folder / "dataset", names)
    yield f"{folder / 'dataset'}: {len(trained)} labelled frames, for DeePMD-kit and as extxyz"
    for name, items in (("audit", harvest.audit_set()), ("held-out", harvest.test_set())):
        if items:
            (folder / name).mkdir()
            write_extxyz(items, folder / name / f"{name}.extxyz")
            yield f"{folder / name}: {len(items)} labelled frames never trained on"


def _write_input(harvest: Harvest, folder: Path, systems: Sequence[str]) -> None:
    """The training of the best model over again, on the exported dataset: `dp train input.json`."""
    if harvest.best is None:
        return
    command = harvest.commands[harvest.best.task]
    run = Run(
        type_map=harvest.spec.type_map,
        systems=tuple(systems),
        steps=command.steps,
        seed=command.seed,
        member=command.member,
    )
    document = build_input(harvest.spec.training, run)
    (folder / "input.json").write_text(json.dumps(document, indent=1) + "\n")
    table = table_text(harvest.spec, command.files, harvest.fetch)
    if table is not None:
        (folder / TABLE).write_text(table)


# ----------------------------------------------------------------------------------- an MD run


def _example(harvest: Harvest, folder: Path, best: MemberTrained) -> Iterator[str]:
    """A LAMMPS run with the best model, from a starting structure of the campaign."""
    frame = _start(harvest)
    if len(frame.species) == 1:  # one atom alone has no dynamics
        return
    model = model_file("final" if harvest.final else "committee-0", best)
    folder.mkdir()
    data = data_file(frame, harvest.spec.type_map, harvest.spec.md.masses)
    (folder / "structure.data").write_text(data)
    text = lammps_input(harvest.spec, frame, Path("../models") / model)
    (folder / "in.lammps").write_text(text)
    _write_structure(frame, folder / "structure.extxyz")
    yield f"molecular dynamics with the model: cd {folder} && lmp -in in.lammps"


def _start(harvest: Harvest) -> Frame:
    assert harvest.history.submitted is not None
    systems = harvest.history.submitted.systems
    ref = systems[harvest.spec.stages[0].systems[0]][0]
    return canonical(Batch.loads(harvest.fetch(ref.batch))[ref.index]).frame


def _write_structure(frame: Frame, path: Path) -> None:
    from ase.io import write  # deferred: ASE is slow to import

    from shared.frames import to_ase

    write(path, to_ase(frame), format="extxyz")


def lammps_input(spec: Spec, frame: Frame, model: Path) -> str:
    """A complete LAMMPS input: thermostatted dynamics of `frame` at constant volume, from
    `structure.data`. Units `metal`."""
    return _render(
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


# ----------------------------------------------------------------------------------- a root


def _copy_campaign(harvest: Harvest, folder: Path) -> str:
    """The campaign and the shared labels it points to. Objects never change, so what an earlier
    export has copied stays."""
    store = harvest.store
    prefix = campaign_uri(harvest.campaign) + "/"
    lock = prefix + "lock"
    keys = [key for key in store.list(prefix) if key != lock]
    lives = harvest.history.lives.values()
    keys += [life.accepted.label.uri for life in lives if life.accepted is not None]
    for key in keys:
        if not (folder / key).exists():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            store.download(key, folder / key)
    return f"{folder}: also a root of its own: dpstream status --root {folder}"


def _write_readme(harvest: Harvest, folder: Path, full: bool) -> None:
    recipe, best = harvest.recipe, harvest.best
    text = _render(
        "README.txt.j2",
        campaign=harvest.campaign,
        final=harvest.final,
        model=model_file("final" if harvest.final else "committee-0", best) if best else None,
        committee=harvest.committee,
        example=(folder / "md-example" / "in.lammps").exists(),
        has_input=(folder / "dataset" / "input.json").exists(),
        type_map=" ".join(harvest.spec.type_map),
        recipe=recipe,
        method=CODES[recipe.code].method(recipe.settings) if recipe else "",
        semi_empirical=recipe is not None and CODES[recipe.code].semi_empirical(recipe.settings),
        full=full,
    )
    (folder / README).write_text(text)


def _render(template: str, **facts: object) -> str:
    return ENVIRONMENT.get_template(template).render(facts)
