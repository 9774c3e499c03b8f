"""The page: a campaign's projections into charts and tables, and these into HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpstream.report import charts
from dpstream.report.lanes import Clock, Share, activity, beside, length, service_shares
from dpstream.report.plans import PlanRow, plan_rows
from dpstream.report.plots import Plot, duration, number, percent
from dpstream.services.coordinator.fleet.spending import Spending, spending_by_deployment
from dpstream.services.coordinator.ledger.snapshots import code_version
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.committees import Errors, Version, force_errors
from dpstream.services.coordinator.views.overview import LabelCounts, labels_by_purpose
from dpstream.services.coordinator.views.work import SERVICES, Span
from dpstream.services.labeler.codes import CODES
from dpstream.shared.errors import NotFound, write_errors
from dpstream.shared.files import arriving
from dpstream.shared.messages import AuditDone, MemberTrained
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import driver_of
from dpstream.shared.values import Rmse

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"number": number, "percent": percent, "duration": duration}
KINDS: Mapping[Errors, str] = {"train": "training", "audit": "audit", "test": "held-out"}
MOST_ROWS = 200
"""Rejections listed one by one."""


def write_report(store: Store, campaign: str, path: Path) -> None:
    """Write the report of a campaign, finished or not, as one HTML file without any reference to
    the outside.

    Raises SpecError for a path that cannot be written, NotFound without the campaign.
    """
    html = render(store, campaign).encode()
    with write_errors(path), arriving(path) as file:
        file.write(html)


def render(store: Store, campaign: str) -> str:
    """The report's HTML. All text from the ledger is escaped."""
    page = Page(store, CampaignView.read(store, campaign))
    template = ENVIRONMENT.get_template("report.html.j2")
    return template.render(page=page, view=page.view, spec=page.spec, code_version=code_version())


@dataclass
class Page:
    """Everything the template shows."""

    store: Store
    view: CampaignView

    @property
    def spec(self) -> Spec:
        return self.view.spec

    @cached_property
    def spans(self) -> Sequence[Span]:
        return self.view.work.spans()

    @property
    def deadletters(self) -> int:
        """Undecodable messages, of all campaigns in the store."""
        return sum(1 for _ in self.store.list("deadletters/"))

    @cached_property
    def spending(self) -> Mapping[str, Spending]:
        """By deployment, of all campaigns in the store."""
        return spending_by_deployment(self.store)

    # --------------------------------------------------------------------------- plan and recipe

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        submitted = self.view.history.submitted
        if submitted is None:
            return None
        recipe, code = submitted.recipe, CODES[submitted.recipe.code]
        return {
            "method": code.method(recipe.settings),
            "semi_empirical": code.semi_empirical(recipe.settings),
            "code": recipe.program,
            "settings": json.dumps(recipe.settings, sort_keys=True),
            "charge": recipe.charge,
            "multiplicity": recipe.multiplicity,
            "digest": recipe.digest,
        }

    @property
    def committees(self) -> int:
        """Complete ones."""
        return self.view.committees.complete

    @property
    def held_out(self) -> Rmse | None:
        """The error on the held-out set of the final model, or of the newest member."""
        if self.view.verified is not None and self.view.verified.test is not None:
            return self.view.verified.test
        members = [m for v in self.versions.values() for m in v.members.values()]
        return next((m.test for m in reversed(members) if m.test is not None), None)

    @property
    def versions(self) -> Mapping[int, Version]:
        return self.view.committees.versions

    @property
    def labels(self) -> LabelCounts:
        assert self.view.overview.labels is not None
        return self.view.overview.labels

    @property
    def purposes(self) -> Mapping[str, int]:
        """Labelled frames by purpose."""
        return labels_by_purpose(self.view.state)

    @property
    def requested(self) -> int:
        """Frames whose label was requested."""
        return self.view.state.requested

    @property
    def reused(self) -> list[Mapping[str, Any]]:
        """Labels found in the store by their writer: frame keys, and how many of those that were
        computed again agree and differ."""
        keys: dict[str, list[str]] = {}
        for key, life in sorted(self.view.history.lives.items()):
            if life.accepted is not None and life.accepted.reused:
                keys.setdefault(life.accepted.writer or "", []).append(key)
        checks = self.view.state.labels.checks.values()
        seen = Counter((check.writer, check.status) for check in checks)
        return [
            {
                "writer": writer,
                "keys": found,
                "agree": seen[writer, "agrees"],
                "differ": seen[writer, "differs"],
            }
            for writer, found in sorted(keys.items())
        ]

    @cached_property
    def plans(self) -> list[PlanRow]:
        return plan_rows(self.view)

    @property
    def stages(self) -> Iterator[Mapping[str, Any]]:
        ends = {ended.stage: ended for ended in self.view.state.exploration.ended}
        planned = self.view.state.planned
        for index, stage in enumerate(self.spec.stages):
            rounds, lives = self.view.rounds, self.view.history.lives.values()
            judged = [r for r in rounds.judged if r.stage == index]
            mine = [x for x in lives if x.selection and x.selection.stage == index and x.accepted]
            begun = bool(judged) or any(place[0] == index for place in rounds.histograms)
            yield {
                "name": stage.name,
                "stage": stage,
                "driver": driver_of(stage.engine),
                "rounds": judged,
                "labels": len(mine),
                "ended": ends.get(index),
                "standing": "dropped"
                if index not in planned
                else ("under way" if begun else "not begun"),
            }

    # --------------------------------------------------------------------------- charts
    # Cached: the template uses each twice, to see whether there is any and to draw it.

    @cached_property
    def histograms(self) -> list[Plot]:
        return [
            charts.histogram(self._place(place), counts, self.view.rounds.trust_at(place))
            for place, counts in sorted(self.view.rounds.histograms.items())
        ]

    def _place(self, place: tuple[int, int]) -> str:
        return f"{self.spec.stages[place[0]].name} · committee {place[1]}"

    @cached_property
    def rounds(self) -> list[Plot]:
        """One chart per stage and condition; the running round's bar is named `now`."""
        bars: dict[tuple[int, str], list[charts.RoundBar]] = {}
        for judged in self.view.rounds.judged:
            about = f"round {judged.round}, committee {judged.version}, {judged.outcome}"
            for condition, counts in judged.counts.items():
                bar = charts.RoundBar(str(judged.round), about, counts)
                bars.setdefault((judged.stage, condition), []).append(bar)
        stage = self.view.state.exploration.stage.index
        for condition, counts in self.view.overview.shares.items():
            if counts.total:
                bar = charts.RoundBar("now", "the running round", counts)
                bars.setdefault((stage, condition), []).append(bar)
        ratio = self.spec.convergence.accurate_ratio
        return [
            charts.rounds(f"{self.spec.stages[stage].name} · {condition}", found, ratio)
            for (stage, condition), found in sorted(bars.items(), key=lambda item: item[0])
        ]

    @cached_property
    def errors(self) -> list[Plot]:
        """Force errors over labels and by version."""
        rules = {"audit limit": self.spec.audit.force_rmse}
        by_labels = charts.series(
            "Force error over labels",
            "frames trained on",
            "force RMSE (eV/Å)",
            self._error_points({}),
            rules,
        )
        names = {float(version): str(version) for version in sorted(self.versions)}
        if self.view.committees.final is not None:
            names[max(names, default=0.0) + 1] = "final"
        by_version = charts.series(
            "Force error by committee",
            "committee version",
            "force RMSE (eV/Å)",
            self._error_points(names),
            rules,
            names,
        )
        return [plot for plot in (by_labels, by_version) if plot is not None]

    def _error_points(self, names: Mapping[float, str]) -> Mapping[str, list[charts.ChartPoint]]:
        """Training, audit and held-out errors; x is the version where `names` are given, else the
        number of frames trained on."""
        points: dict[str, list[charts.ChartPoint]] = {kind: [] for kind in KINDS}
        for version in self.versions.values():
            x = float(version.number if names else version.frames or 0)
            if not version.members:
                continue
            members = list(version.members.values())
            who = f"committee {version.number}"
            points["train"] += _spread("train", who, x, members)
            points["test"] += _spread("test", who, x, members)
            points["audit"] += [
                _audited(a, x) for a in self.view.rounds.audits if a.version == version.number
            ]
        final = self.view.committees.final
        if final is not None:
            x = max(names) if names else float(final.train.frames)
            for kind in KINDS:
                points[kind] += _spread(kind, "final model", x, [final], hollow=True)
        return points

    @cached_property
    def ratio(self) -> Plot | None:
        """Deviation over true error by version."""
        points = {"cold": list[charts.ChartPoint](), "warm": list[charts.ChartPoint]()}
        for audit in self.view.rounds.audits:
            start = "cold" if self.versions[audit.version].cold else "warm"
            text = f"committee {audit.version} ({start} start): {audit.deviation_over_error:.3g}"
            point = charts.ChartPoint(audit.version, audit.deviation_over_error, text, joined=False)
            points[start].append(point)
        return charts.series(
            "Deviation over true error",
            "committee version",
            "mean ε / mean ε̂",
            points,
            {"as large as the error": 1.0},
            {float(version): str(version) for version in sorted(self.versions)},
        )

    @cached_property
    def truths(self) -> list[Plot]:
        """Deviation against true error under the last audit of each stage, and force parity."""
        plots: list[Plot | None] = []
        for stage, audit in sorted(self.view.rounds.newest_audits().items()):
            document = self._pairs(audit)
            pairs = [
                charts.AuditPoint(p["key"], p["deviation"], p["error"], p["verdict"])
                for p in (*document.get("audit", ()), *document.get("pairs", ()))
            ]
            place = (stage, audit.version)
            plots.append(charts.truth(self._place(place), pairs, self.view.rounds.trust_at(place)))
            if "parity" in document:
                label, model = (np.array(document["parity"][k]) for k in ("label", "model"))
                plots.append(charts.parity(f"Forces · {self._place(place)}", label, model))
        return [plot for plot in plots if plot is not None]

    def _pairs(self, audit: AuditDone) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(fetch(self.store, audit.pairs))
        except NotFound:  # results may have been deleted; the ledger stays
            return {}
        return document

    # --------------------------------------------------------------------------- time

    @property
    def lanes(self) -> Plot:
        return charts.lanes(self.spans, Clock(activity(self.spans)))

    @property
    def kinds(self) -> list[str]:
        """Kinds of tasks that were worked on, in loop order."""
        seen = {span.kind for span in self.spans}
        return [kind for kind in SERVICES if kind in seen]

    @property
    def hidden_lanes(self) -> int:
        return max(0, len({span.worker for span in self.spans}) - charts.MOST_LANES)

    @property
    def shares(self) -> list[Share]:
        return service_shares(self.spans)

    @property
    def active(self) -> float:
        return length(activity(self.spans))

    @property
    def overlaps(self) -> list[tuple[str, float]]:
        """How much of the labeling and of the training ran while trajectories were running."""
        found = [
            (name, beside(self.spans, kind, ("explore",)))
            for kind, name in (("label", "labeling"), ("train", "training"))
        ]
        return [(name, share) for name, share in found if share is not None]

    # --------------------------------------------------------------------------- tables

    @property
    def rejections(self) -> list[Mapping[str, Any]]:
        rows = []
        for key, life in self.view.history.lives.items():
            if life.rejected is not None and life.answered is not None:
                rows.append(
                    {
                        "key": key,
                        "purpose": life.purpose,
                        "origin": life.chosen.trajectory if life.chosen else life.purpose,
                        "rule": life.rejected.rule,
                        "detail": life.rejected.detail,
                        "after": life.answered.time - self.view.work.began,
                    }
                )
        return sorted(rows, key=lambda row: (row["after"], row["key"]))

    @property
    def rejections_shown(self) -> list[Mapping[str, Any]]:
        return self.rejections[:MOST_ROWS]

    @property
    def rules_broken(self) -> list[tuple[str, int]]:
        return Counter(row["rule"] for row in self.rejections).most_common()


def _spread(
    kind: Errors, who: str, x: float, members: Sequence[MemberTrained], hollow: bool = False
) -> list[charts.ChartPoint]:
    """The members' mean error as one point, their range as its bar."""
    forces = force_errors(members, kind)
    if not forces:
        return []
    mean, ends = fmean(forces), (min(forces), max(forces))
    text = f"{who}: {KINDS[kind]} {mean:.4g} eV/Å"
    if len(forces) > 1:
        text += f", members {ends[0]:.4g} to {ends[1]:.4g}"
    return [charts.ChartPoint(x, mean, text, ends if len(forces) > 1 else None, hollow, not hollow)]


def _audited(audit: AuditDone, x: float) -> charts.ChartPoint:
    text = (
        f"committee {audit.version}, stage {audit.stage + 1}: audit {audit.force:.4g} eV/Å, "
        f"at most {audit.force_upper:.4g} (95 %), {audit.frames} frames"
    )
    return charts.ChartPoint(x, audit.force, text, (audit.force, audit.force_upper))
