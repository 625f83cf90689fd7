"""BLEU against sparsity as a Bokeh figure: values and intervals under the pointer, a legend that hides techniques."""

from collections.abc import Iterable

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure as new_figure

from slt_lib.base.settings import DENSE
from slt_lib.report.data import Cell, Figures, label, percent
from slt_lib.report.plots import METRICS, look, places
from slt_lib.report.statistics import interval

# matplotlib's marker or line style -> Bokeh's
MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "P": "plus", "v": "inverted_triangle"}
MARKERS |= {"*": "star", "X": "x", "<": "hex", ">": "square_pin"}
DASHES = {"-": "solid", "--": "dashed", "-.": "dotdash", ":": "dotted"}
TOOLTIPS = [("", "@name, @level"), ("BLEU", "@shown"), ("95% interval", "@bounds"), ("minus dense", "@gap"),
            ("seeds", "@seeds")]  # fmt: skip
HEIGHT, NARROWEST = 470, 280  # pixels


def interactive_scores(figures: Figures, pair: str):
    """The plot of `plots.plot_scores`, BLEU alone, as a bokeh figure of the width of its page."""
    levels, names = figures.sparsities(pair), figures.begun(pair)
    title = figures.titled(f"{figures.name}: {pair}, {figures.test_set(pair)}")
    plot = new_figure(height=HEIGHT, min_width=NARROWEST, sizing_mode="stretch_width", title=title,
                      tools="box_zoom,reset", toolbar_location="above",
                      x_axis_label="Sparsity [%] (levels evenly spaced)", y_axis_label=METRICS["bleu"])  # fmt: skip
    dense, points = figures.control(pair, 0), []
    for name in names:
        cells = [cell for level in levels[1:] if (cell := figures.cell(pair, name, level)) and cell.rows]
        if not cells:  # scored at 0% alone
            continue
        x = places(levels, [cell.sparsity for cell in cells], name, names)
        data = _data(figures, pair, cells, dense, x, name)
        follows = dense and name != "slt-mp"  # that starts from an SLT ticket
        start = {"x": [0.0], "y": [dense.mean("bleu")]} if follows else {"x": [], "y": []}
        line = {key: [*start[key], *data[key]] for key in ("x", "y")}
        points.append(_draw(plot, label(name), look(name, names), line, data))
    if dense:
        data = _data(figures, pair, [dense], None, [0.0], "dense")
        line = {"x": [0, len(levels) - 1], "y": data["y"] * 2}
        style = {"color": DENSE.colour, "marker": DENSE.marker, "linestyle": DENSE.line}
        points.append(_draw(plot, DENSE.label, style, line, data))
    _draw_failed(plot, figures, pair, levels)
    plot.add_tools(HoverTool(renderers=points, tooltips=TOOLTIPS))
    plot.xaxis.ticker = list(range(len(levels)))
    plot.xaxis.major_label_overrides = {place: percent(level) for place, level in enumerate(levels)}
    plot.axis.minor_tick_line_color = None
    plot.toolbar.update(logo=None, active_drag=None)  # a finger on the plot scrolls the page
    legend = plot.legend[0]
    legend.update(click_policy="hide", orientation="horizontal", ncols=4, border_line_color=None, margin=0)
    legend.update(location="left", title="Click a technique to hide it", title_text_font_size="11px")
    plot.add_layout(legend, "below")
    return plot


def _data(figures: Figures, pair: str, cells: Iterable[Cell], dense: Cell | None, x: list[float], name: str) -> dict:
    """The columns of a technique's points, as they are drawn and as they are shown under the pointer."""
    points = []
    for at, cell in zip(x, cells, strict=True):
        mean, (low, high) = cell.mean("bleu"), interval(figures, pair, cell, "bleu")
        bounds = "unknown" if np.isnan(low) else f"{low:.2f} to {high:.2f}"
        low, high = np.nan_to_num([low, high], nan=mean).tolist()
        point = {"y": mean, "low": low, "high": high, "level": f"{percent(cell.sparsity)}%", "shown": f"{mean:.2f}"}
        gap = "–"
        if dense:
            lower, upper = interval(figures, pair, cell, "bleu", dense)
            gap = f"{mean - dense.mean('bleu'):+.2f}" + ("" if np.isnan(lower) else f" [{lower:+.2f}, {upper:+.2f}]")
        seeds = ", ".join(f"{row['seed']:g}" for row in cell.rows)
        points.append(point | {"bounds": bounds, "gap": gap, "seeds": seeds, "x": at, "name": label(name)})
    return {key: [point[key] for point in points] for key in points[0]}


def _draw(plot, name: str, style: dict, line: dict, data: dict):
    """A technique's line, intervals and markers, which the legend hides together; returns the markers."""
    colour, source = style["color"], ColumnDataSource(data)
    about = {"legend_label": name, "color": colour}
    plot.line(line["x"], line["y"], line_width=2, line_dash=DASHES[style["linestyle"]], **about)
    plot.segment("x", "low", "x", "high", source=source, line_width=1.5, **about)
    wide = {"line_width": 2.5} if style["marker"] in "PX" else {}  # crosses have no area
    return plot.scatter("x", "y", source=source, marker=MARKERS[style["marker"]], size=10, **wide, **about)


def _draw_failed(plot, figures: Figures, pair: str, levels: list[float]) -> None:
    """A cross at the foot for each cell without a score; under the pointer the reasons."""
    lost = {at: why for at, why in figures.failures(pair).items() if at[1] and not figures.cell(pair, *at).rows}
    if not lost:
        return
    colours = [look(name, figures.techniques(pair))["color"] for name, _ in lost]
    names = [f"{label(name)}, {percent(level)}%: {'; '.join(why)}" for (name, level), why in lost.items()]
    foot = min(cell.mean("bleu") for cell in figures.cells(pair) if cell.rows) - 1
    x = [levels.index(level) for _, level in lost]
    source = ColumnDataSource({"x": x, "y": [foot] * len(x), "name": names, "colour": colours})
    about = {"marker": "x", "size": 10, "line_width": 2, "color": "colour", "legend_label": "failed"}
    plot.add_tools(HoverTool(renderers=[plot.scatter("x", "y", source=source, **about)], tooltips="failed: @name"))
