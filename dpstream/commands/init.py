"""`dpstream init-bulk` and `init-surf`: build a first labelled dataset from one structure.

Parameters are those of DP-GEN. Structures are relaxed, scaled and perturbed; short dynamics with
the labeling code gives further frames. Every single point is a label in the store's cache, so an
interrupted command continues without computing anything twice.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dpstream.commands.label import Workers
from dpstream.commands.options import DEFAULT_ROOT, Root, within
from dpstream.export.dataset_folder import OutputFolder, claim, type_map_for, write_dataset
from dpstream.initial.params import InitBulk, InitParams, InitSurf, read_params
from dpstream.initial.structures import bulk_cell, gaps, surface_cells, variants, widened
from dpstream.properties.basis import PropertySettings, like, relaxed
from dpstream.properties.calculators import RecipeCalculator, label_back
from dpstream.running.connection import open_store
from dpstream.running.label_here import LabelMethod, label_in_parallel
from dpstream.running.recipe_file import RecipeOption, read_recipe
from dpstream.services.labeler import dynamics
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.labeling import FrameLabeler
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import (
    Frame,
    canonical,
    decode_labelled,
    frame_key,
    from_ase,
    to_ase,
)
from dpstream.shared.errors import TaskError, errors_at
from dpstream.shared.ports import Store
from dpstream.shared.values import Rejected, stable_seed
from dpstream.terminal.console import console, print_line
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.progress import progress
from dpstream.terminal.tables import text_table

FEMTOSECOND = 1e-3
"""ps."""

Params = Annotated[
    Path, typer.Argument(metavar="PARAM", help="DP-GEN's param.json (JSON or YAML).")
]
Relaxation = Annotated[
    float, typer.Option(min=1e-4, help="Largest force in a relaxed structure, eV/Å.")
]


def init_bulk(
    param: Params,
    recipe: RecipeOption,
    output: OutputFolder = Path("init-bulk"),
    workers: Workers = 2,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1, help="Temperature of the dynamics, K; default: TEBEG of md_incar, or 300."
        ),
    ] = None,
    timestep: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Time step of the dynamics, fs; default: POTIM of md_incar, or 1."
        ),
    ] = None,
    fmax: Relaxation = 0.02,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Build a first dataset of a crystal or molecule from DP-GEN's init_bulk parameters.

    The structure is relaxed (unless skip_relax is true), scaled and perturbed. Each copy starts a
    short dynamics run with the labeling code; every frame of it is labelled. All labels go into one
    dataset for `initial.data` of a campaign.

    Labels are looked up in the cache under --store and kept there. After Ctrl-C, run the same
    command to continue; nothing is computed twice.

    Example: dpstream init-bulk init.json --recipe recipe.yaml -o al-bulk
    """
    params, unused = read_params(param, InitBulk)
    heat, step = _incar(param.parent, params.md_incar)
    steps = max(1, params.md_nstep)
    plan = Steps(steps, temperature or heat or 300.0, FEMTOSECOND * (timestep or step or 1.0))
    cell = bulk_cell(params, param.parent)
    job = InitialJob("init-bulk", params, recipe, output, workers, fmax, root)
    job.run({"bulk": cell}, lambda relaxed_cell: [("", relaxed_cell)], plan, unused)


def init_surf(
    param: Params,
    recipe: RecipeOption,
    output: OutputFolder = Path("init-surf"),
    workers: Workers = 2,
    fmax: Relaxation = 0.02,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Build a first dataset of surfaces from DP-GEN's init_surf parameters.

    A slab for each Miller index is relaxed (unless skip_relax is true), scaled, pulled apart by
    growing vacuum, and perturbed. All structures are labelled and go into one dataset for
    `initial.data` of a campaign. (DP-GEN leaves them unlabelled; dataset.extxyz can also be used as
    starting structures.)

    Labels are looked up in the cache under --store and kept there. After Ctrl-C, run the same
    command to continue; nothing is computed twice.

    Example: dpstream init-surf surf.json --recipe recipe.yaml -o al-surf
    """
    params, unused = read_params(param, InitSurf)
    cells = surface_cells(params, param.parent)
    wider = gaps(params)

    def opened(slab: Frame) -> list[tuple[str, Frame]]:
        return [("", slab), *((f"vacuum + {gap:g} Å, ", widened(slab, gap)) for gap in wider)]

    job = InitialJob("init-surf", params, recipe, output, workers, fmax, root)
    job.run({f"({name})": cell for name, cell in cells.items()}, opened, Steps(1), unused)


def _incar(folder: Path, name: str | None) -> tuple[float | None, float | None]:
    """TEBEG (K) and POTIM (fs) of an INCAR, None where the file or the key is missing."""
    path = folder / name if name else None
    text = path.read_text(errors="replace") if path is not None and path.is_file() else ""
    matches = [re.search(rf"^\s*{key}\s*=\s*([\d.]+)", text, re.M) for key in ("TEBEG", "POTIM")]
    heat, step = (float(match.group(1)) if match else None for match in matches)
    return heat, step


# ------------------------------------------------------------------------------ the work


@dataclass(frozen=True)
class Steps:
    """Frames per trajectory including the first, temperature (K) and time step (ps)."""

    frames: int
    temperature: float = 300.0
    timestep: float = FEMTOSECOND


@dataclass
class Trajectory:
    name: str
    start: Frame
    kept: list[Labelled] = field(default_factory=list)
    ended: str = ""
    """Reason for ending early; empty for a complete trajectory."""


@dataclass
class InitialJob:
    """The work of one command, for bulk and surfaces alike."""

    command: str
    params: InitParams
    recipe_path: Path
    output: Path
    workers: int
    fmax: float
    root: str
    method: LabelMethod = field(init=False)
    store: Store = field(init=False)

    def run(
        self,
        cells: dict[str, Frame],
        opened: Callable[[Frame], list[tuple[str, Frame]]],
        steps: Steps,
        unused: Sequence[str],
    ) -> None:
        """Turn cells into a dataset and report progress. Raises `typer.Exit` if interrupted or if a
        trajectory ended early."""
        self.method, default = read_recipe(self.recipe_path)
        species = {symbol for cell in cells.values() for symbol in cell.species}
        symbols = type_map_for(None, self.params.type_map or default, species)
        claim(self.output, self.command)
        for line in unused:
            print_line(console, line)
        with within(self.root):
            self.store = open_store(self.root)
            with signals(console) as stopping:
                trajectories = self._trajectories(cells, opened, steps, stopping)
        if stopping.is_set():
            print_line(
                console, "interrupted: all labels are kept; run the same command to continue"
            )
            raise typer.Exit(INTERRUPTED)
        self._finish(trajectories, symbols)

    def _trajectories(
        self,
        cells: dict[str, Frame],
        opened: Callable[[Frame], list[tuple[str, Frame]]],
        steps: Steps,
        stopping: threading.Event,
    ) -> list[Trajectory]:
        if not self.params.skip_relax:
            cells = self._relaxed(cells, stopping)
        shortest = self.method.labels.min_distance
        starts = [
            Trajectory(f"{name}: {wide}{variant}", frame)
            for name, cell in cells.items()
            for wide, open_cell in opened(cell)
            for variant, frame in variants(open_cell, self.params, shortest, name, wide)
        ]
        if not stopping.is_set():
            total = len(starts) * steps.frames
            print_line(console, f"{len(starts)} structures, at most {total} labels")
            self._run_trajectories(starts, steps, stopping)
        return starts

    def _relaxed(self, cells: dict[str, Frame], stopping: threading.Event) -> dict[str, Frame]:
        """Relax each structure: bulk with its cell, slabs and molecules at fixed cell."""
        result = dict(cells)
        variable_cell = self.command == "init-bulk"
        how = PropertySettings(fmax=self.fmax)

        def relax(labeler: FrameLabeler, item: tuple[str, Frame]) -> None:
            name, cell = item
            atoms = like(to_ase(cell), RecipeCalculator(labeler))
            done = relaxed(atoms, how, cell=variable_cell and cell.cell is not None)
            result[name] = canonical(from_ase(done)).frame
            print_line(
                console, f"{name}: relaxed, {done.get_potential_energy() / len(done):.4f} eV/atom"
            )

        self._in_parallel(cells.items(), relax, stopping)
        return result

    def _run_trajectories(
        self, starts: Sequence[Trajectory], steps: Steps, stopping: threading.Event
    ) -> None:
        with progress("structures", len(starts)) as advance:

            def work(labeler: FrameLabeler, trajectory: Trajectory) -> None:
                try:
                    trajectory.kept.extend(labelled_trajectory(labeler, trajectory, steps))
                except RuntimeError as error:  # a label was rejected on the way
                    trajectory.ended = str(error)
                advance(trajectory.name)

            self._in_parallel(starts, work, stopping)

    def _in_parallel(
        self,
        items: Iterable[Any],
        work: Callable[[FrameLabeler, Any], None],
        stopping: threading.Event,
    ) -> None:
        with errors_at(self.command, TaskError):
            label_in_parallel(
                items,
                work,
                self.method,
                self.store,
                purpose=self.command,
                workers=self.workers,
                stopping=stopping,
            )

    def _finish(self, trajectories: Sequence[Trajectory], symbols: Sequence[str]) -> None:
        labelled = [item for trajectory in trajectories for item in trajectory.kept]
        kept = labelled[: self.params.coll_ndata]
        parameters = self.params.model_dump(mode="json")
        about = {"recipe": self.method.recipe.model_dump(), "parameters": parameters}
        print_line(console, write_dataset(kept, self.output, self.command, symbols, **about))
        if len(kept) < len(labelled):
            print_line(
                console, f"coll_ndata: {len(kept)} of {len(labelled)} labelled frames are written"
            )
        ended = [trajectory for trajectory in trajectories if trajectory.ended]
        if ended:
            console.print(_early(ended))
            raise typer.Exit(1)


def labelled_trajectory(
    labeler: FrameLabeler, trajectory: Trajectory, steps: Steps
) -> Iterator[Labelled]:
    """Yield the first frame and the frames of its dynamics, each with its label. Raises
    RuntimeError, naming the rule, if a label is rejected."""

    def point(frame: Frame) -> Outcome:
        form = canonical(frame)
        verdict = labeler.judge(frame_key(form.frame), form.frame)
        if isinstance(verdict, Rejected):
            return Outcome(fault=verdict.rule, messages=(verdict.detail,))
        label = decode_labelled(labeler.context.store.get(verdict.label.uri))[1]
        return Outcome.of_label(frame, label_back(form, label))

    first = point(trajectory.start)
    if first.fault is not None:
        raise RuntimeError(f"{first.fault}: {'; '.join(first.messages)}")
    yield Labelled(trajectory.start, first.label(), {})
    if steps.frames > 1:
        plan = dynamics.Plan(
            seed=stable_seed("init", trajectory.name),
            temperature=steps.temperature,
            timestep=steps.timestep,
            equilibrate=0.0,
            spacing=steps.timestep,
            frames=steps.frames - 1,
        )
        for frame, outcome in dynamics.run(trajectory.start, point, plan):
            yield Labelled(frame, outcome.label(), {})


def _early(ended: Sequence[Trajectory]) -> Table:
    table = text_table("ended early", "frames kept", "reason")
    for trajectory in ended:
        table.add_row(trajectory.name, str(len(trajectory.kept)), escape(trajectory.ended))
    return table
