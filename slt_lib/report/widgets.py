"""Widgets for notebooks, over what a figures folder holds: choose a level, a sentence, two models.

Each shows a picture or a table for its first choice as ordinary outputs. A change redraws these outputs in place. So
papermill, nbval, HTML and GitHub show the first choice, and only the controls need JupyterLab.
"""

import html
from collections.abc import Callable, Sequence

import ipywidgets
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from slt_lib.report import start
from slt_lib.report.data import Figures, label, percent

NOTE = "<i>Run this cell in JupyterLab to choose something else.</i>"
WIDE = ipywidgets.Layout(width="max-content")


class Controls(ipywidgets.VBox):
    """A column of controls; where widgets cannot be shown, one line says how to get them."""

    def _repr_mimebundle_(self, **options):
        return super()._repr_mimebundle_(**options) | {"text/html": NOTE, "text/plain": "controls"}


def controlled(show: Callable[..., Sequence[HTML | Figure]], **controls: ipywidgets.Widget) -> None:
    """Display the controls, and what `show` returns for their values; a change redraws it in place.

    `show` takes the values by name and always returns as many things to display.
    """

    def parts() -> Sequence[HTML | Figure]:
        return show(**{name: control.value for name, control in controls.items()})

    def redraw(change) -> None:
        for handle, part in zip(handles, parts(), strict=True):
            handle.update(part)

    display(Controls(list(controls.values())))
    handles = [display(part, display_id=True) for part in parts()]

    for control in controls.values():
        control.observe(redraw, "value")


def explore(figures: Figures, pair: str) -> None:
    """A slider over sparsity: BLEU and kept weights of each technique there, and its translation of one sentence.

    It begins at the highest published level.
    """

    def show(sparsity: float, sentence: int) -> list[Figure | HTML]:
        table = start.level_table(figures, pair, sparsity, sentence)
        return [start.plot_level(figures, pair, sparsity), HTML(table)]

    there = start.levels(figures, pair)
    levels = sorted({*there, *figures.sparsities(pair)})
    options = [(f"{percent(level)}%" if level else "dense", level) for level in levels]
    about = {"description": "Sparsity", "continuous_update": False, "layout": {"width": "420px"}}
    slider = ipywidgets.SelectionSlider(options=options, value=there[-1], **about)
    controlled(show, sparsity=slider, sentence=_sentences(start.translations(figures.path, pair)))


def compare(frame: pd.DataFrame) -> None:
    """Two translations of a sentence with their differences marked; menus choose the sentence and the two models.

    `frame`: columns technique, sparsity, sentence (a number), source and translation, one row per model and sentence.
    """
    if frame.empty:
        display(HTML(f"<i>No translations: {start.MISSING}.</i>"))
        return
    models = dict.fromkeys(zip(frame.technique, frame.sparsity, strict=True))
    names = {(name, level): label(name) + (f" {percent(level)}%" if level else "") for name, level in models}
    options = [(name, model) for model, name in names.items()]
    texts = {(row.technique, row.sparsity, row.sentence): row.translation for row in frame.itertuples()}
    sources = dict(zip(frame.sentence, frame.source, strict=True))

    def show(sentence: int, one: tuple, other: tuple) -> list[HTML]:
        before, after = (texts.get((*model, sentence), "") for model in (one, other))
        lines = [("source", html.escape(sources[sentence])), (names[one], html.escape(before))]
        lines += [(names[other], start.marked(before, after))]
        return [HTML(start.html_table(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in lines))]

    controlled(
        show,
        sentence=_sentences(frame),
        one=ipywidgets.Dropdown(options=options, value=[*names][0], description="This"),
        other=ipywidgets.Dropdown(options=options, value=[*names][-1], description="against"),
    )


def ask(translate: Callable[[list[str]], list[str]], sentence: str) -> None:
    """A line to type a sentence into, and its translation by `translate`."""
    line = ipywidgets.Text(value=sentence, description="Sentence", continuous_update=False, layout={"width": "720px"})

    def show(sentence: str) -> list[HTML]:
        [found] = translate([sentence])
        return [HTML(f"<p>{html.escape(sentence)}</p><p><b>{html.escape(found)}</b></p>")]

    controlled(show, sentence=line)


def _sentences(frame: pd.DataFrame) -> ipywidgets.Dropdown:
    sources = dict(zip(frame.sentence, frame.source, strict=True))
    options = [(source, number) for number, source in sources.items()] or [(start.MISSING, 1)]
    return ipywidgets.Dropdown(options=options, description="Sentence", layout=WIDE)
