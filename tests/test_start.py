"""What 00_start shows: kept weights and translations per run, and widgets over them, from a figures folder."""

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML
from IPython.utils.capture import capture_output

from slt_lib import report, sparse
from slt_lib.base.errors import InputError
from slt_lib.report import start, widgets
from slt_lib.study import results
from slt_lib.study.start import record_start
from slt_lib.techniques import dense, mp, slt


@pytest.fixture
def recorded(make_study):
    """A figures folder with the tiny study's runs of three recipes, and the study."""
    study = make_study({"seeds": [1], "levels": [0.5, 0.8]})
    chains = study.follow([study.chain(recipe, 1) for recipe in (dense, mp, slt)])
    results.record(study, chains)
    record_start(study, chains)
    folder = results.figures(study.name)
    report.merge(folder)
    return study, chains, folder


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """What a notebook's outputs go through."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_a_grid_of_shares_comes_back():
    grid = np.random.default_rng(1).integers(0, 65, (5, 7)) / 64
    assert (start.decode(start.encode(grid)) == grid).all()


def test_rows_of_a_study(recorded):
    study, chains, folder = recorded
    frame = start.read(folder, "en-de")
    kept = {(row.technique, row.sparsity): start.decode(row.value) for row in frame[frame.what == "kept"].itertuples()}
    assert set(kept) == {("dense", 0.0), ("mp", 0.5), ("mp", 0.8), ("slt", 0.5), ("slt", 0.8)}
    for (_, level), grid in kept.items():
        assert grid.shape == (2, 2) and grid.mean() == pytest.approx(1 - level, abs=0.01)  # 16x16 weights
    shown = start.translations(folder, "en-de")
    assert len(shown) == 5 * 4 and not shown.isna().any(axis=None)
    before = (folder / start.FILE).read_bytes()
    record_start(study, chains[:1])  # again, in part: other rows stay
    assert (folder / start.FILE).read_bytes() == before


def test_the_table_names_what_is_missing_and_marks_what_differs(recorded):
    _, _, folder = recorded
    figures = report.load(folder)
    table = start.level_table(figures, "en-de", 0.5, 1)
    assert table.count("<tr>") == 8 and start.MISSING in table  # head, dense, and the six techniques
    assert start.marked("a b c", "a x <c>").count("<del") == 1 and "&lt;c&gt;" in start.marked("a", "<c>")
    for level in (0.0, 0.5, 0.7):  # 0.7: nothing was run there
        assert start.plot_level(figures, "en-de", level if level in figures.sparsities("en-de") else 0.8).axes


def test_a_widget_shows_its_first_choice_without_a_browser(recorded, shell):
    _, _, folder = recorded
    with capture_output() as seen:
        widgets.explore(report.load(folder), "en-de")
        widgets.compare(start.translations(folder, "en-de"))
    kinds = [output.data for output in seen.outputs]
    assert sum(widgets.NOTE in data.get("text/html", "") for data in kinds) == 2  # instead of the controls
    assert sum("<table>" in data.get("text/html", "") for data in kinds) == 2
    asked = []
    with capture_output():
        widgets.ask(lambda lines: asked.append(lines) or ["<b>"], "one")
    assert asked == [["one"]]


def test_a_change_of_a_control_redraws(shell):
    shown, box = [], widgets.ipywidgets.IntSlider(value=1)
    with capture_output():
        widgets.controlled(lambda n: [HTML(str(shown.append(n)))], n=box)
        box.value = 3
    assert shown == [1, 3]


def test_figures_fall_back_to_the_committed_ones(home):
    assert start.folder_of("no-such-study").joinpath("results.csv").is_file()


def test_no_model_is_published(tmp_path):
    assert sparse.published(tmp_path) is None
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="export it again"):
        sparse.published(tmp_path)
