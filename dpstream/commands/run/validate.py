"""Commands on a spec that start nothing: `validate`, `schema`."""

from __future__ import annotations

import json

from dpstream.commands.import_dpgen import read_machine_file
from dpstream.commands.options import (
    AsJson,
    CheckHere,
    Code,
    Force,
    MachinePath,
    Mode,
    SpecFile,
)
from dpstream.commands.read_spec import SUBMIT_ONLY, prepared
from dpstream.running.check_here import check_here
from dpstream.running.first_checks import FirstChecks
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.plan import plan_facts, show_plan, show_warnings


def validate(
    spec: SpecFile,
    machine: MachinePath = None,
    mode: Mode = None,
    code: Code = None,
    cross_check: CheckHere = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Check a spec and all files it names, and print the plan. Starts nothing.

    With --cross-check, a few imported labels are computed again on this machine and compared with
    the recipe.
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
    if as_json:
        return
    if found.compared and not cross_check:
        print_line(
            notes, f"--cross-check compares {found.compared} imported labels on this machine now"
        )
    runs_here = not any(warning.startswith(SUBMIT_ONLY) for warning in found.warnings)
    print_line(notes, f"next: dpstream {'run' if runs_here else 'submit'} {spec}")


def schema() -> None:
    """Print the JSON Schema of the spec, e.g. for an editor."""
    print(json.dumps(Spec.model_json_schema(), indent=1))
