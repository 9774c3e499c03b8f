"""`dpstream simulate`: how long a campaign takes, and what it costs, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import (
    DEFAULT_ROOT,
    Code,
    Mode,
    NewName,
    Root,
    SpecFile,
    named,
    within,
)
from dpstream.commands.read_spec import prepared
from dpstream.report.simulation import picture
from dpstream.running.first_checks import FirstChecks
from dpstream.running.submit import submit
from dpstream.services.coordinator.fleet.pools import FleetFile, read_fleet
from dpstream.services.coordinator.garbage import collect_rarely
from dpstream.services.coordinator.simulation.observed import observed
from dpstream.services.coordinator.simulation.outcome import SimulationOutcome
from dpstream.services.coordinator.simulation.simulation import EPOCH, Submission, simulate
from dpstream.services.coordinator.simulation.store import MemoryStore
from dpstream.services.coordinator.simulation.variants import difference, given, usual
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.files import write_whole
from dpstream.shared.logs import configure
from dpstream.terminal.console import console, print_line
from dpstream.terminal.simulation import facts_table, pools_table

Fleet = Annotated[
    Path, typer.Option("--fleet", metavar="FILE", help="The fleet file.", show_default=True)
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="The same seed gives the same result.")
]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="NAME",
        help="Take times of tasks, shares of candidates and rejections, and how often workers are "
        "reclaimed from this campaign in --store.",
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="POOL.KEY=VALUE",
        help="Also simulate the fleet file with this change, e.g. spot.max=400; may be repeated. "
        "Default: fewer workers and, where max was reached, twice as many.",
    ),
]
PictureFile = Annotated[
    Path | None,
    typer.Option(
        "--picture", metavar="FILE", help="Write workers, tasks and cost over time as SVG."
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to FILE.")
]


def simulate_campaign(
    spec: SpecFile,
    fleet: Fleet = Path("fleet.yaml"),
    seed: Seed = 1,
    like: Like = None,
    vary: Vary = None,
    picture_file: PictureFile = None,
    json_file: JsonFile = None,
    root: Root = DEFAULT_ROOT,
    mode: Mode = None,
    name: NewName = None,
    code: Code = None,
) -> None:
    """Simulate a campaign on the pools of a fleet file: how long it takes, what it costs, and what
    other limits would change. Starts nothing.

    The coordinator is the real one, in virtual time. Workers, machines, broker and store are
    simulated, with the times in the section simulation of the fleet file, or those of a campaign
    that has run (--like). dpstream fleet schema prints the defaults.

    A section with the times of a label, of a training and of a start, and with reclaimed machines:

    \b
      simulation:
        tasks: {label: {mean: 6m, sd: 5m, most: 17m}, train: 4m, explore: 10m}
        candidates: [0.5, 0.2, 0.1]
        pools:
          spot: {start: 90s, image_pull: 60s, capacity: 600, preemptions: 0.3}

    Example: dpstream simulate campaign.yaml --fleet fleet.yaml --vary spot.max=400

    Exit status: 0 the campaign ends, 1 it pauses or stands still, 2 bad input.
    """
    configure("error")
    collect_rarely()
    file = _fleet_file(fleet, like, root)
    campaign = _submission(spec, mode, name, code)
    with errors_at(str(fleet), SpecError):
        variants = [given(file, text) for text in vary or ()]
    outcome = _simulated(campaign, file, fleet, seed, "simulating")
    console.print(facts_table(outcome))
    console.print(pools_table(outcome))
    if picture_file is not None:
        write_whole(picture_file, picture(outcome))
        print_line(console, f"wrote {picture_file}")
    if json_file is not None:
        write_whole(json_file, outcome.model_dump_json(indent=1) + "\n")
        print_line(console, f"wrote {json_file}")
    if not outcome.ended:
        raise typer.Exit(1)
    for variant in variants or usual(file, outcome):
        other = _simulated(campaign, variant.file, fleet, seed, variant.change)
        print_line(console, f"{variant.change}: {difference(outcome, other)}")


def _simulated(
    campaign: Submission, file: FleetFile, path: Path, seed: int, what: str
) -> SimulationOutcome:
    """The outcome; `what` is shown meanwhile. Raises SpecError, which names the fleet file."""
    with errors_at(str(path), SpecError), console.status(what):
        return simulate(campaign, file, seed)


def _fleet_file(path: Path, like: str | None, root: str) -> FleetFile:
    """The fleet file, with what a campaign in the store has shown instead of what it assumes."""
    file = read_fleet(path)
    if like is None:
        return file
    with within(root):
        store, campaign = named(like, root)
        assumed = observed(CampaignView.read(store, campaign), file)
    return file.model_copy(update={"simulation": assumed})


def _submission(spec: Path, mode: str | None, name: str | None, code: str | None) -> Submission:
    """The campaign, as it would be submitted. Raises SpecError."""
    loaded, gathered, recipe = prepared(spec, mode, name, engines=False, code=code)
    gathered = FirstChecks(spec, cross_check=True, force=True).passed(loaded, gathered)
    event = submit(loaded, gathered, recipe, MemoryStore(), EPOCH)
    return Submission(loaded, event)
