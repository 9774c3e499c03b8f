"""The application `dpstream`: the commands on one campaign, and all others registered.

Every command checks its input before anything starts. Commands that take more than a few lines
are in modules of their own and only registered here.
"""

from __future__ import annotations

import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands import deployment
from dpstream.commands.amend import agree, amend
from dpstream.commands.collect import collect
from dpstream.commands.doctor.doctor import doctor
from dpstream.commands.fleet import fleet
from dpstream.commands.import_dpgen import import_, read_machine_file
from dpstream.commands.init import init_bulk, init_surf
from dpstream.commands.integrity import archive as archive_campaign
from dpstream.commands.integrity import delete, repair, verify
from dpstream.commands.label import label
from dpstream.commands.library import library
from dpstream.commands.new import new
from dpstream.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    Broker,
    Campaign,
    Code,
    CrossCheck,
    Force,
    MachinePath,
    Mode,
    NewName,
    Root,
    SpecFile,
    named,
    parse_workers,
    prepared,
    within,
)
from dpstream.commands.propose import propose
from dpstream.commands.run.joined import run_mixed
from dpstream.commands.run.local import run_campaign
from dpstream.commands.simplify import simplify
from dpstream.commands.simulate import simulate_campaign
from dpstream.commands.test import compare_properties
from dpstream.commands.up import down, up
from dpstream.dpgen.load import load_campaign
from dpstream.export.dpgen_layout import export_layout
from dpstream.export.folder import export as export_campaign
from dpstream.inputs.gather import gather
from dpstream.report import write_report
from dpstream.running.bench_train import Bench
from dpstream.running.check_here import check_here
from dpstream.running.connection import is_folder
from dpstream.running.first_checks import FirstChecks
from dpstream.services.coordinator.fleet.spending import spending_by_deployment
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.why import why as why_frame
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.files import write_whole
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.spec import Spec, expand_material
from dpstream.shared.store.dead_letters import count_buried
from dpstream.shared.values import DEADLETTER_PREFIX
from dpstream.terminal.console import console, notes, say
from dpstream.terminal.pace import remaining
from dpstream.terminal.plan import plan_facts, show_plan, show_warnings
from dpstream.terminal.status import summary
from dpstream.terminal.training_speed import (
    Measured,
    estimate,
    keep,
    machine,
    settings_of,
    speed_table,
)
from dpstream.terminal.verbosity import Quiet, Verbose, in_all_commands

app = typer.Typer(
    name="dpstream",
    help="Train a Deep Potential by concurrent learning: train a committee of models, explore with "
    "them, label the frames on which they disagree, and retrain until they agree.",
    epilog="To start: dpstream new NAME; edit NAME/campaign.yaml; dpstream validate "
    "NAME/campaign.yaml; dpstream run NAME/campaign.yaml.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
WORKERS = {"trainer": 2, "explorer": 2, "labeler": 2}


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"dpstream {version('dpstream')}", highlight=False)
        raise typer.Exit


@app.callback()
def everywhere(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Options of `dpstream` itself."""


@app.command()
def run(
    spec: SpecFile,
    machine: MachinePath = None,
    mode: Mode = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Workers of each service on this machine; services not listed keep the default. "
            "With --broker, 0 is allowed, and coordinator=1 starts a coordinator.",
        ),
    ] = ",".join(f"{service}={count}" for service, count in WORKERS.items()),
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    name: NewName = None,
    code: Code = None,
    cross_check: CrossCheck = True,
    force: Force = False,
    amend: Annotated[
        bool,
        typer.Option(
            "--amend",
            help="If SPEC differs from the plan of the campaign, change the plan after a question.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --amend: do not ask.")] = False,
) -> None:
    """Run a campaign on this machine, or resume it.

    Models, dataset and report are written to DIR/NAME.
    After Ctrl-C or a crash, run the same command to continue; only work in progress is lost.
    From a second terminal, status, watch, pause, resume, cancel, retry and amend reach the run.

    With --broker and --store, submits the campaign to that deployment, adds workers on this
    machine and waits for the end. The deployment needs a coordinator; --workers coordinator=1
    starts one here, which replaces a running one.

    Exit status: 0 converged, 1 not converged, cancelled or paused, 2 bad input,
    3 internal error, 130 interrupted.
    """
    services = (*WORKERS, "coordinator") if broker else tuple(WORKERS)
    crew = {**WORKERS, **parse_workers(workers, services, least=0 if broker else 1)}
    if broker is None and not is_folder(root):
        raise SpecError(
            f"--store: {root}: requires --broker; to run on this machine, give a folder"
        )
    if broker is not None and amend:
        raise SpecError("--amend: in a deployment, type: dpstream amend NAME SPEC")
    given = read_machine_file(spec, machine)
    loaded, gathered, recipe = prepared(spec, mode, name, broker is None, code, given)
    checks = FirstChecks(spec, cross_check, force)
    with within(root):
        if broker is None:
            agreed = partial(agree, yes=yes) if amend else None
            raise typer.Exit(
                run_campaign(loaded, gathered, recipe, checks, Path(root), crew, console, agreed)
            )
        raise typer.Exit(run_mixed(loaded, gathered, recipe, checks, root, broker, crew, console))


@app.command()
def validate(
    spec: SpecFile,
    machine: MachinePath = None,
    mode: Mode = None,
    code: Code = None,
    cross_check: CrossCheck = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Check a spec and all files it names, and print the plan. Starts nothing.

    With --cross-check, the imported labels that a campaign has its labelers compute again are
    compared with the recipe now, on this machine.
    """
    machines = read_machine_file(spec, machine)
    loaded, gathered, recipe = prepared(spec, mode, None, None, code, machines)
    found = FirstChecks(spec, True, force).passed(loaded, gathered)
    if as_json:
        console.print_json(data=plan_facts(loaded, found, recipe))
    else:
        show_plan(console, loaded, found, recipe)
        show_warnings(console, found)
    if cross_check:
        with errors_at(str(spec), SpecError):
            check_here(found, loaded, recipe)
    elif found.compared and not as_json:
        say(notes, f"--cross-check compares {found.compared} imported labels on this machine now")


@app.command()
def status(campaign: Campaign = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show the progress of a campaign, running or ended, from its ledger."""
    with within(root):
        store, name = named(campaign, root)
        view = CampaignView.read(store, name)
        found = view.status
        if as_json:
            say(console, found.overview.model_dump_json(indent=2))
            return
        console.print(summary(found, remaining(found.overview, view.pace)))
        buried, spending = count_buried(store), spending_by_deployment(store)
    for name, spent in spending.items():
        console.print(f"workers of {name}: {spent.describe()}", highlight=False)
    if buried:
        console.print(
            f"{buried} messages could not be decoded; they are kept in the store under "
            f"{DEADLETTER_PREFIX}"
        )


@app.command()
def report(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")
    ] = Path("report.html"),
) -> None:
    """Write a report of a campaign, finished or not: one HTML file that works offline."""
    with within(root):
        store, name = named(campaign, root)
        write_report(store, name, output)
    say(console, f"wrote {output}")


@app.command()
def export(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
    ] = Path("export"),
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Include the ledger and all labels; the folder then works as --store."
        ),
    ] = False,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Also write DIR.zip, with everything that --full includes."),
    ] = False,
    all_formats: Annotated[
        bool,
        typer.Option(
            "--all-formats",
            help="Also write the dataset as DeePMD-kit's mixed type, for MACE, as extxyz split for "
            "training and validation, and as an ASE database.",
        ),
    ] = False,
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Licence of the dataset, for its card: CC-BY-4.0.")
    ] = "",
    layout: Annotated[
        str, typer.Option(metavar="LAYOUT", help="dpstream, or dpgen: iter.* folders as in DP-GEN.")
    ] = "dpstream",
) -> None:
    """Write models, dataset and report to a folder.

    The dataset is written for DeePMD-kit and as extxyz, with a card that states its contents,
    recipe and licence.
    """
    if layout not in ("dpstream", "dpgen"):
        raise SpecError(f"--layout: {layout!r}: allowed: dpstream, dpgen")
    extras = {"full": full, "archive": archive, "all-formats": all_formats, "licence": licence}
    for option in (option for option, given in extras.items() if given and layout == "dpgen"):
        raise SpecError(f"--{option}: allowed only with --layout dpstream")
    with within(root):
        store, name = named(campaign, root)
        if layout == "dpgen":
            lines = export_layout(store, name, output)
        else:
            extent = {"archive": archive, "all_formats": all_formats}
            lines = export_campaign(store, name, output, full, **extent, licence=licence)
        for line in lines:
            say(console, line)


@app.command()
def why(
    frame: Annotated[
        str,
        typer.Argument(
            metavar="FRAME", help="Frame key, or the first characters of it; the report lists some."
        ),
    ],
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Explain why a frame was or was not labelled: its history from the ledger."""
    if not frame:
        raise SpecError("FRAME: '' is not a frame key; give a key, or the first characters of it")
    with within(root):
        store, name = named(campaign, root)
        lines = [*why_frame(store, name, frame)]
    if as_json:
        console.print_json(data={"campaign": name, "frame": frame, "history": lines})
        return
    for line in lines:
        say(console, line)


app.command()(verify)
app.command()(repair)
app.command("archive")(archive_campaign)
app.command()(delete)
app.command()(new)
app.command("import")(import_)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the spec, e.g. for an editor."""
    print(json.dumps(Spec.model_json_schema(), indent=1))


# ------------------------------------------------------------------------------ tools


app.command()(label)
app.command()(doctor)
app.command()(collect)
app.command()(init_bulk)
app.command()(init_surf)
app.command()(simplify)
app.command("test")(compare_properties)
app.add_typer(library, name="library")


bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(bench, name="bench")


@bench.callback()
def benches() -> None:
    """Measure what this machine can do."""


@bench.command("train")
def bench_train(
    spec: SpecFile,
    seconds: Annotated[
        float, typer.Option(min=1, metavar="S", help="About how long all of it may take.")
    ] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to FILE.")
    ] = None,
) -> None:
    """Find the fastest backend, device and number of trainings at once for a spec.

    Trains the spec's models for a few seconds each, with every installed backend of DeePMD-kit, on
    the CPU and on a GPU, 1, 2, 4, … at once, on structures of the spec with random labels. Prints
    the atoms of a batch, the time of a step, the steps per second of all trainings at once, the
    times to start a training and to freeze, compress and measure its model, and how long the first
    committee takes. The figures are kept in the user's cache folder, where dpstream validate finds
    them.

    Each backend needs some seconds to start: with more than one, allow two minutes.

    Example: dpstream bench train campaign.yaml
    """
    loaded = expand_material(load_campaign(spec, None))
    with errors_at(str(spec), SpecError):
        gathered = gather(loaded, spec.parent, trusting=True)
    with private_folder(None) as scratch, console.status("") as status:
        job = Bench(loaded, gathered, scratch, seconds, status.update)
        with errors_at(str(spec), SpecError):
            speeds = job.run()
    measured = Measured(date=time.strftime("%Y-%m-%d"), machine=machine(), speeds=tuple(speeds))
    if json_file is not None:
        write_whole(json_file, measured.model_dump_json(indent=1) + "\n")
    best = measured.best(loaded, gathered)
    assert best is not None
    console.print(speed_table(loaded, gathered, measured))
    for what, why in job.failures.items():
        say(console, f"{what}: {why}")
    say(console, f"fastest: {estimate(loaded, gathered, best)}")
    say(console, f"set {settings_of(best)}")
    keep(loaded, gathered, measured)


# ------------------------------------------------------------------------------ deployment


app.command()(deployment.submit)
app.command("list")(deployment.list_)
app.command()(deployment.watch)
app.command()(deployment.logs)
app.command()(deployment.pause)
app.command()(deployment.resume)
app.command()(deployment.cancel)
app.command()(deployment.retry)
app.command("amend")(amend)
app.command()(deployment.access)
app.command()(propose)
app.command()(up)
app.command()(down)
app.add_typer(fleet, name="fleet")
app.command("simulate")(simulate_campaign)

command = in_all_commands(typer.main.get_command(app))
"""The Click command that `dpstream.cli` runs."""
