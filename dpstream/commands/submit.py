"""`dpstream submit`: hands a campaign to the coordinator of a deployment."""

from __future__ import annotations

import time
from contextlib import closing

from dpstream.commands.options import (
    DEFAULT_ROOT,
    Broker,
    CrossCheck,
    Force,
    Mode,
    NewName,
    Root,
    SpecFile,
    Wait,
    within,
)
from dpstream.commands.read_spec import prepared
from dpstream.commands.steer.requests import print_answer
from dpstream.inputs.gather import Gathered
from dpstream.running.connection import ANSWER_SECONDS, open_bus, open_store, publish
from dpstream.running.first_checks import FirstChecks
from dpstream.running.submit import announced
from dpstream.running.submit import submit as freeze
from dpstream.running.workers_version import with_workers_version
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.messages import CampaignSubmitted
from dpstream.shared.ports import Bus, Store
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe, campaign_uri
from dpstream.terminal.console import console
from dpstream.terminal.plan import introduce


def submit(
    spec: SpecFile,
    mode: Mode = None,
    name: NewName = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
    cross_check: CrossCheck = True,
    force: Force = False,
) -> None:
    """Submit a campaign to a deployment. No engine has to be installed here.

    Submitting the same campaign again changes nothing.
    """
    loaded, gathered, recipe = prepared(spec, mode, name, engines=False)
    with within(root), closing(open_bus(broker)) as bus:
        store, checks = open_store(root), FirstChecks(spec, cross_check, force)
        submitted = handed_in(loaded, gathered, recipe, checks, store, bus)
        print_answer(store, submitted, wait)


def handed_in(
    spec: Spec, gathered: Gathered, recipe: Recipe, checks: FirstChecks, store: Store, bus: Bus
) -> CampaignSubmitted:
    """Hand a campaign to the coordinator of a deployment; a new one is checked and shown first."""
    with errors_at(str(checks.spec), SpecError):
        spec, recipe = with_workers_version(spec, recipe, store)
    if not store.exists(campaign_uri(spec.name, "submitted.json")):
        gathered = checks.passed(spec, gathered)
        introduce(console, spec, gathered, recipe)
    submitted = freeze(spec, gathered, recipe, store, time.time())
    publish(bus, announced(submitted))
    return submitted
