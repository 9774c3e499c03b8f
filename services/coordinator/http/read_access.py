"""Read access to campaigns for the HTTP API, from any thread, without locks on the coordinator.

Open campaigns are read from the coordinator's memory: their states are immutable, and mutable
tables are copied first. Ended campaigns are read from the store; a few of their states are cached.
Neither side waits for the other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from dpstream.services.coordinator.ledger.archive_mark import ArchiveMark, mark_of
from dpstream.services.coordinator.ledger.ledger import load_state, verdict
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    LabelLine,
    finished_overview,
    overview,
)
from dpstream.services.coordinator.views.pages import label_page, task_page
from dpstream.services.coordinator.views.tasks import TaskLine
from dpstream.shared.errors import NotFound, StoreError
from dpstream.shared.messages import CampaignFinished

KEPT = 8
"""States of ended campaigns kept in memory."""
LOOK_EVERY = 60.0
"""Seconds after which the store is asked again whether an ended campaign is archived."""
Verdict = tuple[str, float]
"""Id and time of the verdict on a campaign; one that is deleted and run again has another time."""


@dataclass
class ReadAccess:
    coordinator: Coordinator
    _ended: dict[str, State] = field(default_factory=dict)
    _verdicts: dict[str, CampaignFinished] = field(default_factory=dict)
    _marks: dict[Verdict, ArchiveMark] = field(default_factory=dict)
    """Those found; a mark stands as long as its campaign."""
    _asked: dict[Verdict, float] = field(default_factory=dict)
    """When the store was asked for the mark of a verdict, monotonic clock."""
    _outage: float = -math.inf
    """When the store last did not answer, monotonic clock."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def campaigns(self) -> list[CampaignOverview]:
        """An overview of every campaign, sorted by name."""
        lines = dict[str, CampaignOverview]()
        for name in self.coordinator.ended:
            with suppress(NotFound):  # deleted meanwhile
                lines[name] = self._ended_overview(name)
        for name, open_campaign in dict(self.coordinator.open_campaigns).items():
            lines[name] = self._of_state(open_campaign.state)
        for name, why in dict(self.coordinator.broken).items():
            lines[name] = CampaignOverview(name=name, standing="broken", headline=why)
        return [lines[name] for name in sorted(lines)]

    def campaign(self, campaign: str) -> CampaignOverview:
        """The overview of one campaign. Raises NotFound for an unknown campaign."""
        return self._of_state(self.state(campaign))

    def state(self, campaign: str) -> State:
        """The state of a campaign. Raises NotFound for an unknown campaign."""
        open_campaign = self.coordinator.open_campaigns.get(campaign)
        if open_campaign is not None:
            return open_campaign.state
        if campaign not in self.coordinator.ended:
            raise NotFound(f"no campaign {campaign!r}")
        with self._lock:
            if campaign not in self._ended:
                self._ended[campaign] = load_state(self.coordinator.store, campaign)
                while len(self._ended) > KEPT:
                    del self._ended[next(iter(self._ended))]
            return self._ended[campaign]

    def states(self) -> Mapping[str, State]:
        """The states of the open campaigns, by name."""
        campaigns = dict(self.coordinator.open_campaigns).items()
        return {name: open_campaign.state for name, open_campaign in campaigns}

    def tasks(
        self, campaign: str, status: str | None, kind: str | None, offset: int, limit: int
    ) -> list[TaskLine]:
        """A page of the tasks of a campaign, as `task_page`. Raises NotFound for an unknown
        campaign."""
        state = self.state(campaign)
        open_campaign = self.coordinator.open_campaigns.get(campaign)
        workers = dict(open_campaign.workers) if open_campaign else {}
        progress = dict(open_campaign.progress) if open_campaign else {}
        store = self.coordinator.store
        return task_page(store, state, status, kind, offset, limit, workers, progress)

    def labels(self, campaign: str, status: str | None, offset: int, limit: int) -> list[LabelLine]:
        """A page of the frames whose label was requested, as `label_page`. Raises NotFound for an
        unknown campaign."""
        store = self.coordinator.store
        return label_page(store, self.state(campaign), status, offset, limit)

    def _of_state(self, state: State) -> CampaignOverview:
        return overview(state, None if state.finished is None else self._mark(state.finished))

    def _ended_overview(self, campaign: str) -> CampaignOverview:
        last = self._verdict(campaign)
        return finished_overview(last, self._mark(last))

    def _verdict(self, campaign: str) -> CampaignFinished:
        """On an ended campaign, without reading its ledger."""
        if campaign not in self._verdicts:
            finished = verdict(self.coordinator.store, campaign)
            if finished is None:
                raise NotFound(f"no campaign {campaign!r}")
            self._verdicts[campaign] = finished
        return self._verdicts[campaign]

    def _mark(self, last: CampaignFinished) -> ArchiveMark | None:
        """Of an ended campaign, if it is archived. After an outage the store is not asked for any
        mark for `LOOK_EVERY`: every question waits until its time limit."""
        which, now = (last.id, last.time), time.monotonic()
        asked = max(self._asked.get(which, -math.inf), self._outage)
        if which not in self._marks and now - asked >= LOOK_EVERY:
            self._asked[which] = now
            try:
                mark = mark_of(self.coordinator.store, last)
            except StoreError:
                self._outage = time.monotonic()
            else:
                if mark is not None:
                    self._marks[which] = mark
        return self._marks.get(which)
