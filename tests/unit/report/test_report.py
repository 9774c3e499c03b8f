"""The report: right figures, well-formed, self-contained, harmless."""

import itertools
import re
from collections import defaultdict
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dpstream.report import charts, write_report
from dpstream.report.lanes import (
    Clock,
    activity,
    beside,
    overlap,
    service_shares,
    union,
)
from dpstream.report.page import render
from dpstream.report.plots import Scale, duration, linear, logarithmic, number
from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.fleet.spending import Spending, Spent, spending_uri
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.work import Span, Work
from dpstream.shared import messages as m
from dpstream.shared.atoms.deviation import BINS
from dpstream.shared.errors import NotFound, SpecError
from dpstream.shared.values import Condition, Counts, Trust
from dpstream.terminal.status import figures
from tests.support.campaigns import sample_ledger

VOID = {"meta", "br"}


class Wellformed(HTMLParser):
    """Every element closed in the order it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class Charts(HTMLParser):
    """What a reader of the SVGs finds: words and tooltips by the chart's title, all classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words: defaultdict[str, list[str]] = defaultdict(list)
        self.tooltips: defaultdict[str, list[str]] = defaultdict(list)
        self.classes: set[str] = set()
        self.chart, self.tag = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tag = tag
        if tag == "svg":
            self.chart = found.get("aria-label") or ""
        if self.chart:
            self.classes.update((found.get("class") or "").split())

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""
        if tag == "svg":
            self.chart = ""

    def handle_data(self, data: str) -> None:
        if self.chart and self.tag == "text":
            self.words[self.chart].append(data)
        elif self.chart and self.tag == "title":
            self.tooltips[self.chart].append(data)


def _charts(html: str) -> Charts:
    charts = Charts()
    charts.feed(html)
    return charts


def _parsed(html: str) -> Wellformed:
    parser = Wellformed()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(sample_ledger.write_sample(tmp_path_factory.mktemp("told")), sample_ledger.NAME)


@pytest.fixture
def view(tmp_path: Path) -> CampaignView:
    return CampaignView.read(sample_ledger.write_sample(tmp_path), sample_ledger.NAME)


# ------------------------------------------------------------------------------- the page


def test_one_file_that_needs_nothing_else(html: str) -> None:
    page = _parsed(html)
    assert page.links == []
    assert "script" not in page.seen
    assert not re.search(r"url\(|@import|https?://", html)


def test_what_came_from_outside_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;more&#34;" in html


def test_no_chart_has_a_coordinate_that_is_no_number(html: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) > 5
    assert not re.search(r'="[^"]*\b(nan|inf)\b', "".join(svgs))


def test_the_same_ledger_gives_the_same_bytes(html: str, tmp_path: Path) -> None:
    assert render(sample_ledger.write_sample(tmp_path / "again"), sample_ledger.NAME) == html


@pytest.mark.parametrize(
    ("chart", "words"),
    [
        ("cold · methane 50 K", {"round", "share of checks", "1", "100 %", "needed 95 %"}),
        (
            "cold · committee 1",
            {"largest force deviation (eV/Å)", "share of frames", "low 0.1", "high 0.3"},
        ),
        ("cold · committee 1", {"deviation ε (eV/Å)", "true max-atom error ε̂ (eV/Å)", "ε̂ = ε"}),
        ("Force error over labels", {"frames trained on", "force RMSE (eV/Å)", "audit limit"}),
        ("Force error by committee", {"committee version", "1", "final", "audit limit"}),
        ("Deviation over true error", {"mean ε / mean ε̂", "as large as the error"}),
        (
            "Work by worker over time",
            {"time of activity (s)", "trainer-0", "explorer-0", "labeler-0"},
        ),
    ],
)
def test_the_words_of_a_chart_are_text(html: str, chart: str, words: set[str]) -> None:
    assert words <= set(_charts(html).words[chart])


@pytest.mark.parametrize(
    ("chart", "tooltips"),
    [
        (
            "cold · methane 50 K",
            {
                f"round 1, committee 1, stuck: {share}"
                for share in (
                    "2 of 10 accurate, 20 %",
                    "3 of 10 candidate, 30 %",
                    "5 of 10 failed, 50 %",
                )
            },
        ),
        (
            "cold · committee 1",
            {
                "0.0316 to 0.0422 eV/Å: 2 frames, 40 %",
                "0.178 to 0.237 eV/Å: 3 frames, 60 %",
                f"{sample_ledger.KEYS[sample_ledger.AUDITED][:8]}: ε 0.02, ε̂ 0.05 eV/Å, accurate",
            },
        ),
        (
            "Force error over labels",
            {
                "committee 1: training 0.035 eV/Å, members 0.03 to 0.04",
                "committee 1, stage 1: audit 0.05 eV/Å, at most inf (95 %), 1 frames",
                "final model: held-out 0.03 eV/Å",
            },
        ),
        ("Deviation over true error", {"committee 1 (cold start): 0.4"}),
        ("Work by worker over time", {"train: 1 s", "explore: 1 s", "label: 1 s"}),
    ],
)
def test_what_is_drawn_has_a_tooltip(html: str, chart: str, tooltips: set[str]) -> None:
    assert tooltips <= set(_charts(html).tooltips[chart])


def test_the_page_has_a_style_for_all_that_is_drawn(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    drawn = _charts(html).classes - {"tick"}
    assert len(drawn) > 10
    assert [name for name in drawn if f".{name}" not in style] == []


@pytest.mark.parametrize("command", m.COMMANDS)
def test_every_kind_of_task_has_its_colour(html: str, command: type[m.Command]) -> None:
    """One of its own, or the one for all others."""
    own = re.search(rf"\.k-{command.__name__.lower()}\b[^}}]*fill: var\(--", html)
    assert own or '[class^="k-"] { fill: var(--' in html


def test_every_colour_has_its_counterpart_on_dark_paper(html: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    names = [re.findall(r"--\w+(?=:)", colours) for colours in (light, dark)]
    assert names[0] == names[1] != []
    assert set(re.findall(r"var\((--\w+)\)", html)) <= set(names[0])


@pytest.mark.parametrize(
    "fact",
    [
        "not converged",
        "stage cold ended stuck",
        "Semi-empirical demo labels",
        "GFN2-xTB by tblite 0.8.0",
        "nothing left to label",
        "3 labels of 4 frames asked for: 1 initial, 1 chosen for training, 1 for the audit",
        "2 were computed, 1 found in the store. 1 rejected.",
        "overlap (1)",
        "limit of its trajectory reached",
        "cold · methane 50 K",
        "cold · committee 1",
        "data-limited",
        "1 frames, 1 without a finite error",
        "<td>CPU, tensorflow 2.21.0, float64</td>",
    ],
)
def test_it_tells(html: str, fact: str) -> None:
    assert fact in html


def test_first_principles_labels_carry_no_banner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"xc": "pbe", "basis": "def2-svp"}
    recipe = sample_ledger.RECIPE.model_copy(update={"code": "pyscf", "settings": settings})
    monkeypatch.setattr(sample_ledger, "RECIPE", recipe)
    assert "emi-empirical" not in render(sample_ledger.write_sample(tmp_path), sample_ledger.NAME)


@pytest.mark.parametrize("tell", [sample_ledger.write_beginning, sample_ledger.write_half])
def test_an_unfinished_campaign_has_a_report(tmp_path: Path, tell: object) -> None:
    assert callable(tell)
    html = render(tell(tmp_path), sample_ledger.NAME)
    _parsed(html)
    assert "under way" in html


def test_the_running_round_is_shown_before_its_verdict(tmp_path: Path) -> None:
    html = render(sample_ledger.write_half(tmp_path), sample_ledger.NAME)
    assert "the running round: 2 of 10 accurate, 20 %" in html


def test_work_lost_with_stopped_workers_is_shown(tmp_path: Path) -> None:
    writer = sample_ledger.LedgerWriter(tmp_path)
    writer.beginning()
    fields = dict.fromkeys(("version", "member", "seed", "steps"), 1)
    dataset = sample_ledger.Ref.to("dataset", b"")
    writer.work(m.Train, "t", "trainer-0", dataset=dataset, **fields)
    writer.record(m.TaskReleased, task="t", reason="asked to go", preempted=True, seconds=300.0)
    store = writer.write()
    assert "cost 5.0 min of work that was done again; preemptions: 1." in render(
        store, sample_ledger.NAME
    )
    status = CampaignView.read(store, sample_ledger.NAME).status
    assert figures(status)["work lost"] == "300 s with stopped and lost workers; preemptions: 1"


def test_what_the_workers_of_a_deployment_cost_is_shown(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    assert "worker-hours" not in render(store, sample_ledger.NAME)
    spent = Spending(pools={"cpu": Spent(hours=4.0, idle_hours=1.0, cost=2.0)}, labels=5)
    store.put(spending_uri("lab"), spent.model_dump_json().encode())
    assert (
        "Workers of the deployment lab, for all its campaigns: 4.00 worker-hours, 25% of them "
        "idle; cost 2.00, 0.4 per computed label."
    ) in render(store, sample_ledger.NAME)


def test_without_lost_workers_nothing_is_said_of_them(html: str, view: CampaignView) -> None:
    assert "Stopped and lost workers" not in html
    assert "work lost" not in figures(view.status)


def test_force_parity_where_the_audit_tells_it(tmp_path: Path) -> None:
    parity = {"label": [0.0, 1.0, -1.0], "model": [0.1, 1.0, -1.0]}
    html = render(sample_ledger.write_sample(tmp_path, parity=parity), sample_ledger.NAME)
    assert "3 components, RMSE 0.0577 eV/Å" in html


def test_cleared_results_cost_only_their_chart(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    store.delete("campaigns/told/results/pairs.json")
    html = render(store, sample_ledger.NAME)
    assert "true max-atom error" not in html
    assert "not converged" in html


def test_deadletters_are_counted(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    store.put("deadletters/abc", b"?")
    assert "1 undecodable messages" in render(store, sample_ledger.NAME)


def test_it_replaces_an_older_report(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path / "root")
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(store, sample_ledger.NAME, path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path / "root")
    with pytest.raises(SpecError, match="cannot be written"):
        write_report(store, sample_ledger.NAME, tmp_path / "nowhere" / "report.html")


def test_a_campaign_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        write_report(
            sample_ledger.write_sample(tmp_path / "root"), "other", tmp_path / "report.html"
        )


# ------------------------------------------------------------------------------- projections


def test_a_chunk_delivered_twice_counts_once(view: CampaignView) -> None:
    assert view.rounds.histograms[(0, 1)].sum() == 5


def test_checks_cut_off_count_as_failed(tmp_path: Path) -> None:
    view = CampaignView.read(sample_ledger.write_half(tmp_path), sample_ledger.NAME)
    counts = Counts(accurate=2, candidate=3, failed=5)
    assert view.overview.shares == {"methane 50 K": counts}
    assert view.overview.counts == counts


def test_the_final_model_is_no_member(view: CampaignView) -> None:
    assert view.committees.final is not None
    assert sorted(view.committees.versions) == [1]
    assert sorted(view.committees.versions[1].members) == [0, 1]


def test_trust_levels_in_force(view: CampaignView) -> None:
    later = m.TrustChanged(
        id="t", campaign="told", time=9.0, stage=0, version=4, trust=Trust(low=1, high=2), why=""
    )
    rounds = view.rounds
    rounds.add(later)
    found = [rounds.trust_at((0, version)) for version in (0, 1, 3, 4)]
    assert found == [None, sample_ledger.TRUST, sample_ledger.TRUST, later.trust]
    assert rounds.trust_at((1, 5)) is None


def _told(*messages: m.Message) -> CampaignView:
    """A campaign with nothing but these messages in its ledger."""
    return CampaignView(reduce(apply, messages, State(spec=sample_ledger.spec())), messages)


def _judged(verdict: str) -> m.TrainingJudged:
    return m.TrainingJudged.model_validate(
        {
            "id": "j",
            "campaign": "told",
            "time": 1.0,
            "version": 1,
            "verdict": verdict,
            "force": 0.1,
            "lengthen": 1.0,
            "why": "measured",
        }
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), "not known yet"),
        (("sound",), "data-limited"),
        (("sound", "training-limited"), "training-limited"),
        (("training-limited", "label-noise-limited"), "label-noise-limited"),
        (("training-limited", "sound"), "data-limited"),
    ],
)
def test_what_limits_the_learning(verdicts: tuple[str, ...], expected: str) -> None:
    assert _told(*map(_judged, verdicts)).limited_by[0] == expected


def test_converged_overrules_what_training_said() -> None:
    end = m.CampaignFinished(id="f", campaign="told", time=2.0, verdict="converged", why="all good")
    assert _told(_judged("sound"), end).limited_by == ("converged", "all good")
    assert _told(end).verdict == ("converged", "all good")


def test_a_paused_campaign_says_so_until_resumed() -> None:
    pause = m.CampaignPaused(id="p", campaign="told", time=2.0, why="look at this")
    resume = m.CampaignResumed(id="r", campaign="told", time=3.0)
    assert _told(pause).verdict == ("paused", "look at this")
    assert _told(pause, resume).verdict[0] == "under way"


# ------------------------------------------------------------------------------- time


def _span(kind: str, start: float, end: float, worker: str = "w") -> Span:
    return Span(worker, kind, kind, start, end, "done")


def test_spans_from_claim_to_result(tmp_path: Path) -> None:
    spans = Work.of(read_messages(sample_ledger.write_sample(tmp_path), sample_ledger.NAME)).spans()
    explored = [span for span in spans if span.kind == "explore"]
    assert [(s.worker, s.end - s.start, s.outcome) for s in explored] == [("explorer-0", 1, "done")]
    assert {span.service for span in spans} == {"trainer", "explorer", "labeler"}


def _events(*kinds: type[m.TaskEvent]) -> list[m.Message]:
    told_of = {m.TaskReleased: {"reason": "asked to go"}, m.TaskClaimed: {"worker": "e"}}
    told_of[m.TaskFailed] = {"permanent": False, "reason": "no"}  # type: ignore[dict-item]
    command = m.Verify(
        id="c",
        campaign="told",
        time=0.0,
        task="t",
        title="verify",
        max_seconds=1.0,
        spec=sample_ledger.Ref.to("spec", b""),
        model=sample_ledger.Ref.to("model", b""),
        type_map=("C",),
        structure=sample_ledger.FrameRef(
            batch=sample_ledger.Ref.to("b", b""), index=0, key="0" * 32
        ),
        seed=1,
    )
    events = [
        kind(id=str(i), campaign="told", time=i + 1.0, task="t", attempt=1, **told_of.get(kind, {}))
        for i, kind in enumerate(kinds)
    ]
    return [command, *events]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [(m.TaskReleased, "released"), (m.TaskFailed, "failed"), (m.LeaseLapsed, "lapsed")],
)
def test_how_an_attempt_ended(end: type[m.TaskEvent], outcome: str) -> None:
    (span,) = Work.of(_events(m.TaskClaimed, end, m.TaskReleased)).spans()
    assert (span.start, span.end, span.outcome) == (1.0, 2.0, outcome)


def test_what_has_no_end_runs_until_the_last_message() -> None:
    later = m.CampaignResumed(id="r", campaign="told", time=9.0)
    (span,) = Work.of([*_events(m.TaskClaimed), later]).spans()
    assert (span.end, span.outcome) == (9.0, "running")


def test_idle_share_counts_all_workers_of_a_service() -> None:
    spans = [
        _span("explore", 0, 10, "a"),
        _span("explore", 0, 5, "b"),
        _span("label", 8, 10, "c"),
    ]
    shares = {share.service: share for share in service_shares(spans)}
    assert shares["explorer"].idle == pytest.approx(0.25)
    assert shares["labeler"].idle == pytest.approx(0.8)
    assert "trainer" not in shares


def test_nights_without_anybody_are_no_idleness() -> None:
    spans = [_span("label", 0, 10), _span("label", 50_000, 50_010)]
    assert service_shares(spans)[0].idle == 0
    clock = Clock(activity(spans))
    assert (clock.total, clock.breaks, clock(50_005)) == (20, [10], 15)


def test_short_gaps_are_idleness() -> None:
    spans = [_span("label", 0, 10), _span("label", 30, 40)]
    assert service_shares(spans)[0].idle == pytest.approx(0.5)


def test_overlap_of_labeling_with_exploration() -> None:
    spans = [_span("explore", 0, 10), _span("explore", 5, 12), _span("label", 8, 16)]
    assert beside(spans, "label", ("explore",)) == pytest.approx(0.5)
    assert beside(spans, "train", ("explore",)) is None


def test_unions_and_overlaps() -> None:
    assert union([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)]
    assert overlap([(0, 3), (5, 6)], [(2, 5.5)]) == pytest.approx(1.5)


def test_lanes_of_a_cloud_campaign_are_bounded() -> None:
    spans = [_span("label", 0, 1, f"labeler-{i:04}") for i in range(500)]
    assert len(charts.lanes(spans, Clock(activity(spans))).y_ticks) == charts.MOST_LANES


# ------------------------------------------------------------------------------- charts


def test_histogram_bars_stand_on_the_axis_and_know_their_verdict() -> None:
    counts = charts.np.zeros(48, dtype=int)
    counts[[20, 26, 40]] = 2, 1, 1
    plot = charts.histogram("h", counts, Trust(low=0.1, high=0.3))
    assert [rect.kind for rect in plot.rects] == ["accurate", "candidate", "failed"]
    assert all(r.y + r.height == pytest.approx(plot.bottom) for r in plot.rects)
    assert plot.rects[0].height == pytest.approx(2 * plot.rects[1].height, abs=0.2)
    middle = (BINS[26] * BINS[27]) ** 0.5
    assert 0.1 < middle < 0.3


def test_a_lower_level_of_zero_has_no_place_on_the_axis() -> None:
    counts = charts.np.zeros(48, dtype=int)
    counts[20] = 2
    plot = charts.histogram("h", counts, Trust(low=0.0, high=0.3))
    assert [rect.kind for rect in plot.rects] == ["candidate"]
    assert [rule.text for rule in plot.rules] == ["high 0.3"]


def test_stacked_bars_fill_the_whole_height() -> None:
    bar = charts.RoundBar("1", "round 1", Counts(accurate=5, candidate=3, failed=2))
    plot = charts.rounds("r", [bar], 0.95)
    assert [r.kind for r in plot.rects] == ["accurate", "candidate", "failed"]
    assert sum(r.height for r in plot.rects) == pytest.approx(plot.bottom - plot.top, abs=0.3)


def test_a_bound_without_limit_reaches_the_top() -> None:
    point = charts.ChartPoint(1, 0.1, "p", (0.1, float("inf")))
    plot = charts.series("s", "x", "y", {"audit": [point]}, {"limit": 0.2})
    assert plot is not None
    assert plot.marks[0].whisker is not None
    assert plot.marks[0].whisker[1] == plot.top


def test_every_named_version_lies_on_the_axis() -> None:
    names = {1.0: "1", 2.0: "2", 3.0: "3"}
    plot = charts.series("s", "x", "y", {"cold": [charts.ChartPoint(1, 0.5, "p")]}, {}, names)
    assert plot is not None
    assert [tick.text for tick in plot.x_ticks] == ["1", "2", "3"]
    assert all(plot.left < tick.at < plot.right for tick in plot.x_ticks)


def test_a_series_without_finite_values_is_no_chart() -> None:
    point = charts.ChartPoint(1, float("inf"), "p")
    assert charts.series("s", "x", "y", {"audit": [point]}, {"limit": 0.2}) is None


def test_values_apart_by_decades_get_a_logarithmic_axis() -> None:
    points = [charts.ChartPoint(i, 10.0**-i, "p") for i in range(4)]
    plot = charts.series("s", "x", "y", {"train": points}, {})
    assert plot is not None
    heights = [mark.y for mark in plot.marks]
    steps = [b - a for a, b in itertools.pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)


def test_a_point_on_the_diagonal() -> None:
    pair = charts.AuditPoint("k", 0.2, 0.2, "candidate")
    plot = charts.truth("t", [pair], Trust(low=0.1, high=0.3))
    assert plot is not None
    rule = plot.rules[0]
    mark = plot.marks[0]
    slope = (rule.y2 - rule.y1) / (rule.x2 - rule.x1)
    assert mark.y == pytest.approx(rule.y1 + slope * (mark.x - rule.x1), abs=0.3)


@pytest.mark.parametrize("scale", [linear([0.03, 7.1], 0, 100), logarithmic([2e-4, 0.7], 0, 100)])
def test_scales_hold_their_values_and_have_ticks(scale: Scale) -> None:
    assert 0 <= scale(0.03) < scale(0.5) <= 100
    assert len(scale.ticks()) >= 3
    assert all(0 <= tick.at <= 100 for tick in scale.ticks())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "0.001"), (0.12345, "0.1235"), (12345, "12,345"), (2e-7, "2e-7")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (48, "48 s"), (750, "12.5 min"), (11160, "3.1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_condition_names_its_chart(html: str) -> None:
    assert f"cold · {Condition(system='methane', temperature=50.0)}" in html
