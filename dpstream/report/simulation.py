"""The picture of a simulated campaign: workers, waiting tasks and cost over time, as one SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpstream.report.page import ENVIRONMENT
from dpstream.report.plots import Line, Plot, Scale, linear, number, polyline
from dpstream.services.coordinator.simulation.outcome import Moment, SimulationOutcome

WIDTH, HEIGHT = 760.0, 190.0
POINTS = 400
"""Of a curve, at most."""
HOUR, MINUTE = 3600.0, 60.0
Curve = tuple[str, Callable[[Moment], float]]
"""Its kind, which is also its name in the legend, and its value at a moment."""
WORKERS: tuple[Curve, ...] = (
    ("busy", lambda moment: moment.busy),
    ("idle", lambda moment: moment.idle),
    ("starting", lambda moment: moment.waiting + moment.starting),
)
TASKS: tuple[Curve, ...] = (("tasks", lambda moment: moment.tasks),)
COST: tuple[Curve, ...] = (("cost", lambda moment: moment.cost),)


def picture(outcome: SimulationOutcome) -> str:
    """The SVG."""
    moments = outcome.moments[:: len(outcome.moments) // POINTS + 1]
    plots = [
        _plot("workers", "workers", moments, WORKERS),
        _plot("tasks that wait", "tasks", moments, TASKS),
        _plot("cost", "cost", moments, COST),
    ]
    legend = [name for name, _ in WORKERS]
    template = ENVIRONMENT.get_template("simulation.svg.j2")
    return template.render(plots=plots, legend=legend, width=WIDTH, height=HEIGHT)


def _plot(title: str, y_title: str, moments: Sequence[Moment], curves: Sequence[Curve]) -> Plot:
    last = moments[-1].time
    unit, name = (HOUR, "hours") if last >= 2 * HOUR else (MINUTE, "minutes")
    plot = Plot(title, name, y_title, WIDTH, HEIGHT)
    x = Scale(0.0, max(last / unit, 1e-9), plot.left, plot.right)
    highest = [value(moment) for moment in moments for _, value in curves]
    y = linear(highest, plot.bottom, plot.top)
    plot.x_ticks, plot.y_ticks = x.ticks(10, number), y.ticks(4, number)
    plot.lines = [
        Line(polyline((x(each.time / unit), y(value(each))) for each in moments), kind)
        for kind, value in curves
    ]
    return plot
