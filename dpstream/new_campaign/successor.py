"""A new campaign that begins with the plan and the labels of an existing one.

The folder holds copies of everything that the spec names, so that the new campaign is valid as it
is and depends on no other store.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dpstream.export.dataset_folder import write_dataset
from dpstream.export.results import CampaignResults
from dpstream.inputs.frames_as_given import run_lengths
from dpstream.services.coordinator.views.amendment import known_inputs, plan_to_amend
from dpstream.services.labeler.attachments import Attached
from dpstream.services.labeler.codes import CODES
from dpstream.services.trainer.training_input import TABLE
from dpstream.shared.atoms.dataset import Labelled, load_packs, write_deepmd
from dpstream.shared.atoms.frames import Batch, Frame, frame_key, to_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import CampaignSubmitted
from dpstream.shared.spec import DATASET, ZBL, Spec
from dpstream.shared.spec.dimers import dimer_keys
from dpstream.shared.values import FrameRef, Ref, given_model

COMMAND = "new"
LABELS, HELD_OUT, FILES = "dataset", "held-out", "files"
"""Folders of a new campaign, beside `structures`."""
BUILT = ("structures", "periodic", "format", "slabs", "supercell", "shuffle", "label")
"""Keys of a system that are part of its structures, or of the recipe, once a campaign has begun."""

HEAD = """\
# {name}: begins with plan {plan} of {old} and its {count} labels. Units: eV, Å, ps, K, bar.
#   dpstream validate campaign.yaml     checks everything and prints the plan
#   dpstream run campaign.yaml
# Keys that are left out have their defaults: `dpstream new NAME --full` lists them.
# For further elements, extend type_map and add systems with structures that contain them.
"""
OF_LABELS = """\
# The labels in {labels}/ are by {recipe}.
# With another recipe in `labels`, compute them again, and name relabelled/deepmd in initial.data:
#   dpstream label {labels}/dataset.extxyz --recipe campaign.yaml -o relabelled
"""


@dataclass
class Successor:
    """What a new campaign `name` takes over from `old`."""

    name: str
    old: CampaignResults
    submitted: CampaignSubmitted

    @staticmethod
    def of(old: CampaignResults, name: str) -> Successor:
        """Raises SpecError for a campaign that has nothing to take over."""
        submitted = old.view.state.submitted
        if submitted is None:
            raise SpecError(f"--from: {old.campaign}: has not begun; copy its spec instead")
        if submitted.recipe.code == DATASET:
            raise SpecError(
                f"--from: {old.campaign}: reduces a dataset; run dpstream simplify on it again"
            )
        return Successor(name, old, submitted)

    @cached_property
    def labelled(self) -> list[Labelled]:
        """All labels that models have learned from, without dimers, which the spec asks for."""
        dimers = dimer_keys(self._plan[1])
        learned = self.old.training_set() if self._has_trained else self._imported
        return [item for item in learned if frame_key(item.frame) not in dimers]

    @property
    def text(self) -> str:
        """The spec."""
        recipe = self.submitted.recipe
        method = CODES[recipe.code].method(recipe.settings)
        text = HEAD + (OF_LABELS if self.labelled else "") + "\n"
        head = text.format(
            name=self.name,
            plan=self._plan[0],
            old=self.old.campaign,
            count=len(self.labelled),
            labels=LABELS,
            recipe=f"{method} with {recipe.program}",
        )
        return head + yaml.dump(
            self._document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
        )

    @property
    def structures(self) -> Mapping[str, bytes]:
        """Contents of files by name: the structures that each system starts from."""
        lengths = run_lengths(self._plan[1])
        systems, _ = known_inputs(self.old.view.state)
        return {
            f"{system}.extxyz": _extxyz(
                [frame for ref in refs for frame in self._frames(ref, system in lengths)]
            )
            for system, refs in systems.items()
            if system in self._plan[1].systems
        }

    def fill(self, folder: Path) -> None:
        """Write the labels, and the files that the spec names."""
        if self.labelled:
            (folder / LABELS).mkdir()
            type_map = self._plan[1].type_map
            about = {"campaign": self.old.campaign, "recipe": self.submitted.recipe.model_dump()}
            write_dataset(self.labelled, folder / LABELS, COMMAND, type_map, **about)
        write_deepmd(self._held_out, folder / HELD_OUT, self._plan[1].type_map)
        for name, ref in self._files.items():
            (folder / FILES).mkdir(exist_ok=True)
            (folder / FILES / name).write_bytes(self.old.fetch(ref))

    # ---------------------------------------------------------------------------- the old campaign

    @cached_property
    def _plan(self) -> tuple[int, Spec]:
        return plan_to_amend(self.old.view.state)

    @property
    def _has_trained(self) -> bool:
        return bool(self.old.history.datasets)

    @property
    def _imported(self) -> list[Labelled]:
        return load_packs(self.old.fetch, self.submitted.packs)

    @cached_property
    def _held_out(self) -> list[Labelled]:
        return self.old.test_set()

    def _frames(self, ref: FrameRef, whole: bool) -> list[Frame]:
        """The structure that a trajectory starts from; `whole`: all that it judges."""
        batch = list(Batch.loads(self.old.fetch(ref.batch)))
        return batch if whole else [batch[ref.index]]

    @property
    def _attached(self) -> dict[str, Ref]:
        found: dict[str, Attached] = {}
        _with_names(self._plan[1].labels.settings, found)
        return {file: each.ref(self.old.campaign) for file, each in found.items()}

    @property
    def _files(self) -> dict[str, Ref]:
        given = self.submitted.files.items()
        return {f"{name}{Path(ref.uri).suffix}": ref for name, ref in given} | self._attached

    # ------------------------------------------------------------------------------- the spec

    @property
    def _document(self) -> dict[str, Any]:
        """The spec, as a user would write it."""
        spec = self._plan[1]
        document = without_defaults(spec)
        document["name"] = self.name
        document["systems"] = {
            name: {
                "structures": [f"structures/{name}.extxyz"],
                **{key: value for key, value in system.items() if key not in BUILT},
            }
            for name, system in document["systems"].items()
        }
        document["initial"] = self._initial(document["initial"])
        labels = {"code": spec.labels.code, "settings": _with_names(spec.labels.settings, {})}
        document["labels"] = labels | {**document.get("labels", {}), **labels}
        if self._held_out:
            verification = {**document.get("verification", {}), "data": [HELD_OUT]}
            verification.pop("reference_md", None)
            document["verification"] = verification
        self._name_training_files(document.get("training", {}))
        return document

    def _initial(self, before: dict[str, Any]) -> dict[str, Any]:
        """Frames that were labelled for the first training are in the dataset after it."""
        kept = ("dimers",) if self._has_trained else ("pick", "perturb", "dimers")
        data = {"data": [f"{LABELS}/deepmd"]} if self.labelled else {}
        return data | {key: value for key, value in before.items() if key in kept}

    def _name_training_files(self, training: dict[str, Any]) -> None:
        names = {Path(name).stem: f"{FILES}/{name}" for name in self._files}
        if "init" in training:
            count = len(training["init"]["model"])
            training["init"]["model"] = [names[given_model(number)] for number in range(count)]
        if training.get("repulsion", {}).get("table", ZBL) != ZBL:
            training["repulsion"]["table"] = names[TABLE]


def without_defaults(spec: Spec) -> dict[str, Any]:
    """The keys of a spec that differ from their defaults; of a stage's dynamics, those that differ
    from `md`."""
    short, whole = (spec.model_dump(mode="json", exclude_defaults=on) for on in (True, False))
    for stage, full in zip(short.get("stages", ()), whole["stages"], strict=True):
        stage.pop("md", None)
        own = {key: value for key, value in full["md"].items() if value != whole["md"][key]}
        stage.update({"md": own} if own else {})
    return short


def _with_names(settings: Any, found: dict[str, Attached]) -> Any:
    """Settings with names in place of attached files, which are added to `found`."""
    if isinstance(settings, dict) and settings.keys() == Attached.model_fields.keys():
        file = Attached.model_validate(settings)
        found[file.file] = file
        return f"{FILES}/{file.file}"
    if isinstance(settings, dict):
        return {key: _with_names(value, found) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [_with_names(value, found) for value in settings]
    return settings


def _extxyz(frames: list[Frame]) -> bytes:
    from ase.io import write  # deferred: slow to import

    text = io.StringIO()
    write(text, [to_ase(frame.with_parameters({})) for frame in frames], format="extxyz")
    return text.getvalue().encode()


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values in one line, and long texts as blocks."""


def _list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    is_plain = not any(isinstance(each, (list, dict)) for each in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=is_plain)


def _str(dumper: _Dumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _str)
