"""The application `dpstream`: all commands, in the groups of its help.

Every command checks its input before anything starts.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer

from dpstream.commands import deployment, integrity
from dpstream.commands.amend import amend
from dpstream.commands.collect import collect
from dpstream.commands.doctor.bench import bench
from dpstream.commands.doctor.doctor import doctor
from dpstream.commands.fleet import fleet
from dpstream.commands.import_dpgen import import_
from dpstream.commands.init import init_bulk, init_surf
from dpstream.commands.label import label
from dpstream.commands.library import library
from dpstream.commands.new import new
from dpstream.commands.propose import propose
from dpstream.commands.results.export import export
from dpstream.commands.results.show import report, status, why
from dpstream.commands.run.command import run
from dpstream.commands.run.validate import schema, validate
from dpstream.commands.simplify import simplify
from dpstream.commands.simulate import simulate_campaign
from dpstream.commands.test import compare_properties
from dpstream.commands.up import down, up
from dpstream.terminal.console import console
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


GROUPS: dict[str, dict[str, Any]] = {
    "Run a campaign": {
        "new": new,
        "import": import_,
        "validate": validate,
        "run": run,
        "simplify": simplify,
    },
    "Follow a campaign": {
        "list": deployment.list_,
        "status": status,
        "watch": deployment.watch,
        "logs": deployment.logs,
        "why": why,
        "report": report,
    },
    "Steer a campaign": {
        "pause": deployment.pause,
        "resume": deployment.resume,
        "cancel": deployment.cancel,
        "retry": deployment.retry,
        "amend": amend,
        "propose": propose,
    },
    "Keep its results": {
        "export": export,
        "collect": collect,
        "library": library,
        "archive": integrity.archive,
        "delete": integrity.delete,
        "verify": integrity.verify,
        "repair": integrity.repair,
    },
    "Label and test without a campaign": {
        "label": label,
        "init-bulk": init_bulk,
        "init-surf": init_surf,
        "test": compare_properties,
    },
    "Machines and deployments": {
        "doctor": doctor,
        "bench": bench,
        "up": up,
        "down": down,
        "submit": deployment.submit,
        "fleet": fleet,
        "simulate": simulate_campaign,
        "access": deployment.access,
        "schema": schema,
    },
}
"""Commands, by the headings of `dpstream --help`."""
for heading, commands in GROUPS.items():
    for name, each in commands.items():
        if isinstance(each, typer.Typer):
            app.add_typer(each, name=name, rich_help_panel=heading)
        else:
            app.command(name, rich_help_panel=heading)(each)

command = in_all_commands(typer.main.get_command(app))
"""The Click command that `dpstream.cli` runs."""
