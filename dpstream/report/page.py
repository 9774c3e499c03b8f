"""The page: facts into charts and tables, and these into HTML."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpstream.report import charts
from dpstream.report.lanes import (
    SERVICES,
    Clock,
    Share,
    Span,
    activity,
    beside,
    length,
    service_shares,
    spans_of,
)
from dpstream.report.plots import Plot, duration, number, percent
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.ledger.snapshots import code_version
from dpstream.services.coordinator.ledger.submission import check_submitted
from dpstream.services.coordinator.views.progress import Facts, headline, learning_verdict
from dpstream.services.labeler.codes import CODES
from dpstream.shared.errors import NotFound, SpecError
from dpstream.shared.messages import AuditDone, MemberTrained, Message
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Spec
from dpstream.shared.values import Rmse, campaign_uri

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"number": number, "percent": percent, "duration": duration}
MOST_ROWS = 200
"""Rejections listed one by one."""


def write_report(store: Store, campaign: str, path: Path) -> None:
    """Write the report of a campaign, finished or not, as one HTML file without any reference to
    the outside.

    Raises SpecError for a path that cannot be written, NotFound without the campaign.
    """
    html = render(store, campaign)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # of the two errors the first is the one to be told
            partial.unlink(missing_ok=True)
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from error


def render(store: Store, campaign: str) -> str:
    """The report's HTML. Whatever came out of the ledger is escaped."""
    spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
    messages: list[Message] = list(read_messages(store, campaign))
    page = Page(store, spec, Facts.of(messages), spans_of(messages))
    check_submitted(store, campaign, page.facts.history.submitted)
    template = ENVIRONMENT.get_template("report.html.j2")
    return template.render(page=page, facts=page.facts, spec=spec, code_version=code_version())


@dataclass
class Page:
    """Everything the template shows."""

    store: Store
    spec: Spec
    facts: Facts
    spans: Sequence[Span]

    @property
    def headline(self) -> tuple[str, str]:
        return headline(self.facts)

    @property
    def learning(self) -> tuple[str, str]:
        return learning_verdict(self.facts)

    @property
    def elapsed(self) -> float:
        """Seconds from submission to the last message."""
        return self.facts.last - self.facts.began

    @property
    def deadletters(self) -> int:
        """Undecodable messages, of all campaigns in the store."""
        return sum(1 for _ in self.store.list("deadletters/"))

    # --------------------------------------------------------------------------- plan and recipe

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        submitted = self.facts.history.submitted
        if submitted is None:
            return None
        recipe, code = submitted.recipe, CODES[submitted.recipe.code]
        return {
            "method": code.method(recipe.settings),
            "semi_empirical": code.semi_empirical(recipe.settings),
            "code": f"{recipe.code} {recipe.version}",
            "settings": json.dumps(recipe.settings, sort_keys=True),
            "charge": recipe.charge,
            "multiplicity": recipe.multiplicity,
            "digest": recipe.digest,
        }

    @property
    def committees(self) -> int:
        """Complete ones."""
        size = self.spec.training.members
        return sum(len(version.members) == size for version in self.facts.versions.values())

    @property
    def held_out(self) -> Rmse | None:
        """The error on the held-out set of the final model, or of the newest member."""
        if self.facts.verified is not None and self.facts.verified.test is not None:
            return self.facts.verified.test
        members = [m for v in self.facts.versions.values() for m in v.members.values()]
        return next((m.test for m in reversed(members) if m.test is not None), None)

    @property
    def labels(self) -> Mapping[str, int]:
        """Labels by purpose, and how they were come by."""
        found: Counter[str] = Counter()
        for life in self.facts.history.lives.values():
            found["asked"] += 1
            found["rejected"] += life.rejected is not None
            if life.accepted is not None:
                found["accepted"] += 1
                found[life.purpose] += 1
                found["reused" if life.accepted.reused else "computed"] += 1
        return found

    @property
    def stages(self) -> Iterator[Mapping[str, Any]]:
        for index, stage in enumerate(self.spec.stages):
            judged = [r for r in self.facts.rounds if r.stage == index]
            lives = [x for x in self.facts.history.lives.values() if x.selection is not None]
            mine = [x for x in lives if x.selection and x.selection.stage == index and x.accepted]
            begun = bool(judged) or any(place[0] == index for place in self.facts.histograms)
            yield {
                "name": stage.name,
                "stage": stage,
                "rounds": judged,
                "labels": len(mine),
                "ended": self.facts.stages.get(index),
                "begun": begun,
            }

    # --------------------------------------------------------------------------- charts
    # Cached: the template uses each twice, to see whether there is any and to draw it.

    @cached_property
    def histograms(self) -> list[Plot]:
        return [
            charts.histogram(self._place(place), counts, self.facts.trust_at(place))
            for place, counts in sorted(self.facts.histograms.items())
        ]

    def _place(self, place: tuple[int, int]) -> str:
        return f"{self.spec.stages[place[0]].name} · committee {place[1]}"

    @cached_property
    def rounds(self) -> list[Plot]:
        """One chart per stage and condition; the running round's bar is named `now`."""
        bars: dict[tuple[int, str], list[charts.RoundBar]] = {}
        for judged in self.facts.rounds:
            about = f"round {judged.round}, committee {judged.version}, {judged.outcome}"
            for condition, counts in judged.counts.items():
                bar = charts.RoundBar(str(judged.round), about, counts)
                bars.setdefault((judged.stage, condition), []).append(bar)
        for (stage, condition), counts in self.facts.running.items():
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
        names = {float(version): str(version) for version in sorted(self.facts.versions)}
        if self.facts.final is not None:
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

    def _error_points(self, names: Mapping[float, str]) -> dict[str, list[charts.ChartPoint]]:
        """Training, audit and held-out errors; x is the version where `names` are given, else the
        number of frames trained on."""
        points: dict[str, list[charts.ChartPoint]] = {"train": [], "audit": [], "test": []}
        for version in self.facts.versions.values():
            x = float(version.number if names else version.frames or 0)
            if not version.members:
                continue
            members = list(version.members.values())
            for kind in ("train", "test"):
                points[kind] += _spread(kind, f"committee {version.number}", x, members)
            points["audit"] += [
                _audited(a, x) for a in self.facts.audits if a.version == version.number
            ]
        final = self.facts.final
        if final is not None:
            x = max(names) if names else float(final.train.frames)
            for kind in points:
                points[kind] += _spread(kind, "final model", x, [final], hollow=True)
        return points

    @cached_property
    def ratio(self) -> Plot | None:
        """Deviation over true error by version."""
        points = {"cold": list[charts.ChartPoint](), "warm": list[charts.ChartPoint]()}
        for audit in self.facts.audits:
            start = "cold" if self.facts.versions[audit.version].cold else "warm"
            text = f"committee {audit.version} ({start} start): {audit.deviation_over_error:.3g}"
            point = charts.ChartPoint(audit.version, audit.deviation_over_error, text, joined=False)
            points[start].append(point)
        return charts.series(
            "Deviation over true error",
            "committee version",
            "mean ε / mean ε̂",
            points,
            {"as large as the error": 1.0},
            {float(version): str(version) for version in sorted(self.facts.versions)},
        )

    @cached_property
    def truths(self) -> list[Plot]:
        """Deviation against true error under the last audit of each stage, and force parity."""
        plots: list[Plot | None] = []
        for stage, audit in sorted(self.facts.newest_audits().items()):
            document = self._pairs(audit)
            pairs = [
                charts.AuditPoint(p["key"], p["deviation"], p["error"], p["verdict"])
                for p in (*document.get("audit", ()), *document.get("pairs", ()))
            ]
            place = (stage, audit.version)
            plots.append(charts.truth(self._place(place), pairs, self.facts.trust_at(place)))
            if "parity" in document:
                label, model = (np.array(document["parity"][k]) for k in ("label", "model"))
                plots.append(charts.parity(f"Forces · {self._place(place)}", label, model))
        return [plot for plot in plots if plot is not None]

    def _pairs(self, audit: AuditDone) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(fetch(self.store, audit.pairs))
        except NotFound:  # results may have been cleared away; the ledger stays
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
        for key, life in self.facts.history.lives.items():
            if life.rejected is not None and life.answered is not None:
                rows.append(
                    {
                        "key": key,
                        "purpose": life.purpose,
                        "origin": life.chosen.trajectory if life.chosen else life.purpose,
                        "rule": life.rejected.rule,
                        "detail": life.rejected.detail,
                        "after": life.answered.time - self.facts.began,
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
    kind: str, who: str, x: float, members: Sequence[MemberTrained], hollow: bool = False
) -> list[charts.ChartPoint]:
    """The members' mean error as one point, their range as its bar."""
    found = [getattr(member, kind) for member in members]
    forces = [rmse.force for rmse in found if rmse is not None]
    if not forces:
        return []
    mean, ends = sum(forces) / len(forces), (min(forces), max(forces))
    word = {"train": "training", "audit": "audit", "test": "held-out"}[kind]
    text = f"{who}: {word} {mean:.4g} eV/Å"
    if len(forces) > 1:
        text += f", members {ends[0]:.4g} to {ends[1]:.4g}"
    return [charts.ChartPoint(x, mean, text, ends if len(forces) > 1 else None, hollow, not hollow)]


def _audited(audit: AuditDone, x: float) -> charts.ChartPoint:
    text = (
        f"committee {audit.version}, stage {audit.stage + 1}: audit {audit.force:.4g} eV/Å, "
        f"at most {audit.force_upper:.4g} (95 %), {audit.frames} frames"
    )
    return charts.ChartPoint(x, audit.force, text, (audit.force, audit.force_upper))
