"""Amendments of a campaign's plan, as operators send them."""

from __future__ import annotations

from typing import Any

from dpstream.running.amend import Draft
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.amendment import Preview
from dpstream.shared import messages as m
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.spec.amendment import flat
from tests.support.campaigns.campaign_simulator import key, ref


def amendment(
    after: Spec, follows: int = 1, name: str = "", author: str = "ada", **more: Any
) -> m.CampaignAmended:
    """The complete message."""
    return m.CampaignAmended(
        id=name or f"amendment-{follows}-{key(str(flat(after)))[:8]}",
        campaign=after.name,
        time=100.0 * follows,
        follows=follows,
        author=author,
        spec=after.model_dump(mode="json"),
        **more,
    )


def changed(before: Spec, **sections: Any) -> Spec:
    """A spec with other values in its sections; what they do not name stays."""
    document = before.model_dump(mode="json")
    for section, given in sections.items():
        is_whole = not isinstance(given, dict)
        document[section] = given if is_whole else {**document[section], **given}
    return Spec.model_validate(document)


def with_stage(before: Spec, name: str, at: int | None = None, **more: Any) -> Spec:
    """A spec with one more stage, by default at its end."""
    stages = before.model_dump(mode="json")["stages"]
    new = {"name": name, "systems": ["methane"], "temperatures": [600.0], "md": stages[0]["md"]}
    stages.insert(len(stages) if at is None else at, {**new, **more})
    return changed(before, stages=stages)


def without_stage(before: Spec, name: str) -> Spec:
    return changed(
        before, stages=[s for s in before.model_dump(mode="json")["stages"] if s["name"] != name]
    )


def verdicts(state: State) -> dict[str, str]:
    """How the stages have ended, by name."""
    stages = state.spec.stages
    return {stages[ended.stage].name: ended.verdict for ended in state.exploration.ended}


def new_frames(system: str, count: int) -> dict[str, Any]:
    """The fields of an amendment that adds a system."""
    frames = tuple(m.FrameRef(batch=ref(system), index=i, key=key(system, i)) for i in range(count))
    return {"systems": {system: frames[:1]}, "atoms": {system: 5}, "frames": frames[1:]}


def announced(store: Store, event: m.CampaignAmended) -> m.CampaignAmended:
    """The message as it is published, after its complete form was stored."""
    return Draft(event, {}, Preview()).announced(store)
