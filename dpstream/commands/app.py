"""The application `dpstream`: all commands, in the groups of its help.

Every command checks its input before anything starts.
"""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dpstream.terminal.console import console
from dpstream.terminal.verbosity import Quiet, Verbose, in_all_commands

GROUPS = {
    "Run a campaign": {
        "new": "new:new",
        "import": "import_dpgen:import_",
        "validate": "run.validate:validate",
        "run": "run.command:run",
        "simplify": "simplify:simplify",
    },
    "Follow a campaign": {
        "list": "results.follow:list_",
        "status": "results.show:status",
        "watch": "results.follow:watch",
        "logs": "results.follow:logs",
        "why": "results.show:why",
        "report": "results.show:report",
    },
    "Steer a campaign": {
        "pause": "steer.requests:pause",
        "resume": "steer.requests:resume",
        "cancel": "steer.requests:cancel",
        "retry": "steer.requests:retry",
        "amend": "steer.amend:amend",
        "propose": "steer.propose:propose",
    },
    "Keep its results": {
        "export": "results.export:export",
        "collect": "collect:collect",
        "library": "library:library",
        "archive": "integrity:archive",
        "delete": "integrity:delete",
        "verify": "integrity:verify",
        "repair": "integrity:repair",
    },
    "Label and test without a campaign": {
        "label": "label:label",
        "init-bulk": "init:init_bulk",
        "init-surf": "init:init_surf",
        "test": "test:compare_properties",
    },
    "Machines and deployments": {
        "doctor": "doctor.doctor:doctor",
        "bench": "doctor.bench:bench",
        "up": "up:up",
        "down": "up:down",
        "submit": "submit:submit",
        "fleet": "fleet:fleet",
        "simulate": "simulate:simulate_campaign",
        "access": "access:access",
        "schema": "run.validate:schema",
    },
}
"""Modules of `dpstream.commands` and the functions in them that are commands, by the headings of
`dpstream --help`."""


class LazyCommands(UserDict[str, Any]):
    """The commands by name. The module of a command is imported when the command is looked up: all
    modules together take two seconds."""

    def __init__(self, shared: list[Any]) -> None:
        """`shared`: options of every command."""
        super().__init__()
        self._shared = shared
        for heading, places in GROUPS.items():
            self.data.update(dict.fromkeys(places, heading))

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        if isinstance(found, str):
            found = self.data[name] = in_all_commands(_loaded(name, found), self._shared)
        return found


def _loaded(name: str, heading: str) -> Any:
    module, _, attribute = GROUPS[heading][name].partition(":")
    found = getattr(import_module(f"dpstream.commands.{module}"), attribute)
    group = typer.Typer(callback=lambda: None, rich_markup_mode="rich")
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name, rich_help_panel=heading)
    else:
        group.command(name, rich_help_panel=heading)(found)
    (command,) = typer.main.get_group(group).commands.values()
    return command


class LazyGroup(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands(self.params)


app = typer.Typer(
    name="dpstream",
    cls=LazyGroup,
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


command = typer.main.get_command(app)
"""The Click command that `dpstream.cli` runs."""
