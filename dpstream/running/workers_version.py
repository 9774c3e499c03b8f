"""The version of a labeling code that is not installed here: the one that the workers of the
deployment state."""

from __future__ import annotations

from datetime import datetime, timezone

from dpstream.services.coordinator.ledger.submission import stored_spec, submission
from dpstream.services.labeler.recipes import make_recipe, program_of
from dpstream.shared.errors import SpecError
from dpstream.shared.ports import Store
from dpstream.shared.programs import Programs
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe, campaign_uri


def with_workers_version(spec: Spec, recipe: Recipe, store: Store) -> tuple[Spec, Recipe]:
    """Spec and recipe with the version of the workers, if the recipe has none. A campaign that
    exists keeps its own. Raises `SpecError` if none is known, or several are."""
    if recipe.version is not None:
        return spec, recipe
    if store.exists(campaign_uri(spec.name, "submitted.json")):
        version = stored_spec(store, spec.name).labels.version
        if version is None:  # submitted from a machine with the code
            return spec, submission(store, spec.name).recipe
    else:
        version = _stated(Programs.read(store), spec.labels.capability, program_of(recipe))
    labels = spec.labels.model_copy(update={"version": version})
    return spec.model_copy(update={"labels": labels}), make_recipe(labels)


def _stated(programs: Programs, capability: str, program: str) -> str:
    queue = f"label.{capability}"
    groups = {group: v for group, v in programs.versions(queue, program).items() if v}
    versions = sorted(set(groups.values()))
    if len(versions) == 1:
        return versions[0]
    if not versions:
        raise SpecError(
            f"labels.version: missing: {program} is not installed here, and no worker of this "
            f"deployment has stated its version for {queue}; give the version, or start such a "
            "worker first"
        )
    some = {version: next(g for g, v in groups.items() if v == version) for version in versions}
    since = datetime.fromtimestamp(programs.since(queue, program), timezone.utc)
    listed = ", ".join(f"{version} ({group})" for version, group in some.items())
    raise SpecError(
        f"labels.version: missing: workers that serve {queue} have stated different versions of "
        f"{program} since {since:%Y-%m-%d %H:%M} UTC: {listed}; give the one that "
        "is to compute the labels"
    )
