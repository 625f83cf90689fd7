"""Pictures of trainings, and a recipe's runs next to those of its default."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from slt_lib import techniques
from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.report import pictures
from slt_lib.report.merging import merge
from slt_lib.report.pictures import Curve
from slt_lib.report.statistics import contrast
from slt_lib.study import answers, notebook, progress, results
from slt_lib.study.answers import compare, default_of, usual
from slt_lib.study.chains import foresee

LEVELS = [0.5, 0.6]  # of those of the study, the first two


@pytest.fixture
def tiny(session_study, monkeypatch, tmp_path):
    """The session's study, with a figures folder of the test's own."""
    monkeypatch.setenv("SLT_FIGURES", str(tmp_path))
    results._described.clear()
    return session_study


def follow(study, recipe, levels=LEVELS, **knobs):
    return study.follow([study.chain(recipe, seed, levels, **knobs) for seed in study.seeds])


def dense(study):
    return study.follow([study.chain(techniques.dense, seed) for seed in study.seeds])


def drawn(figure):
    return pictures.png(figure).startswith(b"\x89PNG")


def colours(axes):
    return {line.get_label(): line.get_color() for line in axes.get_lines()} | {
        bars.get_label(): bars.lines[0].get_color() for bars in axes.containers
    }


# The plan ------------------------------------------------------------


def test_a_plan_trains_nothing(make_study, monkeypatch):
    study = make_study()
    monkeypatch.setattr(study, "train", None)
    for recipe in (techniques.dense, techniques.mp, techniques.slt_mp, techniques.mp_slt):
        assert drawn(notebook.show_plan(study, recipe))
    assert not list(study.store.path.glob("*/run.json"))


def test_the_plan_is_what_is_trained(tiny):
    """The sparsity that a plan has at a checkpoint is that of the learning curve, but for whole weights."""
    for recipe in (techniques.mp, techniques.slt):
        for run in follow(tiny, recipe)[0].runs:
            plan = notebook.plan(run.ticket)
            for point in run.curve:
                assert plan.sparsity[point["step"]] == pytest.approx(point["sparsity"], abs=0.01)


def test_the_plan_knows_where_the_weights_come_from(tiny):
    def origins(recipe, **knobs):
        runs = foresee(tiny, tiny.chain(recipe, 1, LEVELS, **knobs))
        return [notebook.plan(run.ticket).origin for run in runs]

    step = round(0.25 * tiny.params.training.steps)
    assert origins(techniques.slt, rewind=0.25) == [None, (0, step), (1, step)]
    assert origins(techniques.slt, rewind=0.25, source="dense") == [None, (0, step), (0, step)]
    assert origins(techniques.lt) == [None, None, None]


# Weights ------------------------------------------------------------


def test_block_shares_keep_the_mean_of_even_blocks():
    random = np.random.default_rng(1)
    for shape in ((64, 64), (1200, 64), (7, 300)):
        kept = random.random(shape) < 0.3
        shares = pictures.block_shares(kept)
        assert max(shares.shape) <= pictures.BLOCKS and shares.min() >= 0 and shares.max() <= 100
        height, width = (np.linspace(0, size, n + 1).astype(int) for size, n in zip(shape, shares.shape, strict=True))
        assert (shares * np.outer(np.diff(height), np.diff(width))).sum() == pytest.approx(100 * kept.sum())


def test_kept_and_pruned_weights_are_all_weights(tiny):
    run = follow(tiny, techniques.slt)[0].runs[-1]
    parts = notebook.divided(run.weights(), run)
    assert len(parts["kept"]) == run.record["kept"] and not parts["pruned"].any()
    assert len(parts["kept"]) + len(parts["pruned"]) == run.record["prunable"]


def test_every_recipe_has_its_pictures(tiny):
    for recipe in techniques.RECIPES.values():
        chains = tiny.follow([tiny.chain(recipe, 1, [0.5, 0.6, 0.8])])
        weights, curves = notebook.show_magnitudes(chains), notebook.show_curves(chains)
        assert len(weights.axes) == (2 if recipe in (techniques.dense, techniques.mp) else 3)
        assert all(len(axes.get_lines()) >= len(chains[0].runs) for axes in curves.axes)
    assert drawn(notebook.show_kept(chains)) and drawn(weights) and drawn(curves)


def test_without_a_finished_run_a_line_stands_where_the_picture_was(capsys):
    failed = SimpleNamespace(record={"status": "failed"}, sparsity=0.5)
    chains = [SimpleNamespace(runs=[failed])]
    assert notebook.show_kept(chains) is None and notebook.show_magnitudes(chains) is None
    assert capsys.readouterr().out.count("trained to its end") == 2


def test_levels_have_one_colour_each_and_dense_its_own():
    found = pictures.level_colours([0.5, 0.0, 0.9, 0.5])
    assert list(found) == [0.0, 0.5, 0.9] and len({*found.values()}) == 3 and found[0.0] == DENSE.colour


# The answer ------------------------------------------------------------


def test_a_changed_knob_stands_next_to_its_default(tiny):
    levels = [0.5, 0.8]  # the study has another one between: the default is that of the same levels
    default, changed = (follow(tiny, techniques.slt, levels, **knobs) for knobs in ({}, {"rewind": 0.25}))
    found, lacking = compare(tiny, changed, dense(tiny))
    assert found.variant == "rewind=0.25" and not lacking and found.levels == levels
    for level in levels:
        for cells, chains in ((found.default, default), (found.yours, changed)):
            runs = {run.id for chain in chains for run in chain.runs if run.sparsity == level}
            assert {row["run"] for row in cells[level].rows} == runs and len(runs) == 2
    table = pictures.answer_table(found).markdown.splitlines()
    assert "Default | Yours" in table[0] and len(table) == 2 + 1 + len(levels)
    gap = contrast(found.figures, tiny.pair, found.yours[0.8], found.default[0.8])
    assert "{:+.1f} [{:+.1f}, {:+.1f}]".format(gap.effect, *gap.bounds()) in table[-1]
    axes = pictures.plot_answer(found).axes[0]
    shown = colours(axes)
    assert shown["SLT, default"] == TECHNIQUES["slt"].colour != shown["SLT, rewind=0.25"]
    for bars in axes.containers:  # the dense model is the first point of every curve
        x, y = bars.lines[0].get_data()
        assert x[0] == y[0] == 0 and len(x) == 1 + len(levels)


def test_the_default_alone_is_compared_with_dense_and_the_paper(tiny):
    found, lacking = compare(tiny, follow(tiny, techniques.slt), dense(tiny))
    assert not found.variant and not found.default and not lacking
    assert pictures.answer_table(found).markdown.startswith("| Sparsity | BLEU | Minus dense [95%] | Paper")
    assert {*colours(pictures.plot_answer(found).axes[0])} >= {"SLT", "paper (WMT14)", "dense"}


def test_other_levels_are_compared_with_those_of_the_study(tiny):
    follow(tiny, techniques.slt, [0.5, 0.6, 0.8])
    found, lacking = compare(tiny, follow(tiny, techniques.slt, [0.8]), dense(tiny))
    assert found.variant == "levels=0.8" and {*found.default} == {0.5, 0.6, 0.8} and not lacking
    assert usual(tiny.chain(techniques.slt, 1, [0.8])) == {"levels": []}


def test_a_default_that_is_nowhere_is_not_trained_but_named(make_study, capsys, monkeypatch):
    study = make_study({"seeds": [1]})
    dense, changed = (
        study.follow([study.chain(recipe, 1, [0.5], **knobs)])
        for recipe, knobs in ((techniques.dense, {}), (techniques.clt, {"rewind": 0.25}))
    )
    monkeypatch.setattr(study, "train", None)
    monkeypatch.setattr(notebook, "display", lambda *shown: None)
    notebook.answer(study, changed, dense)
    said = capsys.readouterr().out
    assert said.startswith("The default's runs at 50% are neither in the store") and "with rewind = 0.05" in said
    assert said.count("\n") == 1


def test_a_default_that_is_not_stored_comes_from_the_figures_folder(make_study, monkeypatch):
    study = make_study({"seeds": [1]})
    dense, default, changed = (
        study.follow([study.chain(recipe, 1, [0.5], **knobs)])
        for recipe, knobs in ((techniques.dense, {}), (techniques.slt, {}), (techniques.slt, {"rewind": 0.25}))
    )
    before, _ = compare(study, changed, dense)
    results.record(study, default)
    merge(results.figures(study.name))
    study.store.remove(default[0].runs[1].id)
    found, lacking = compare(study, changed, dense)
    assert not lacking
    cell = found.default[0.5]
    assert cell.mean("bleu") == pytest.approx(before.default[0.5].mean("bleu"), abs=1e-4)
    assert contrast(found.figures, study.pair, found.yours[0.5], cell) is not None
    monkeypatch.setattr(answers, "SCORE_VERSION", -1)  # scored by another version: not compared
    assert compare(study, changed, dense)[1] == [0.5]


def test_a_recipe_of_ones_own_has_no_default(tiny):
    def halves(study, seed):
        run = yield study.ticket(seed)
        yield run.rewind(at=0.25).prune(by=run, sparsity=0.5)

    chains = tiny.follow([halves(tiny, seed) for seed in tiny.seeds])
    assert default_of(tiny, chains[0]) is None
    found, lacking = compare(tiny, chains, dense(tiny))
    assert not found.variant and not lacking and {*found.yours} == {0.5} and not found.paper()
    assert drawn(pictures.plot_answer(found))


def test_each_variant_of_a_comparison_has_a_line(tiny, monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    group = techniques.compared(tiny, ["rewind"], rewinds=[0.25, 1.0])["rewind"]
    notebook.answer_ablations(tiny, tiny.follow(group))
    _, forest, table = shown
    names = [text.get_text() for text in forest.axes[0].get_yticklabels()]
    assert names == ["SLT 50%, rewind=0.25", "SLT 50%, rewind=1.0"]
    assert table.markdown.count("`rewind=") == 2


# Live ------------------------------------------------------------


class Shown:
    """Stands in for IPython's display: counts what it is given."""

    def __init__(self):
        self.images = []

    def __call__(self, image, display_id):
        self.images.append(image)
        return SimpleNamespace(update=self.images.append)


@pytest.fixture
def shown(monkeypatch):
    """A notebook's kernel, as far as progress reports look at it."""
    import IPython.display

    display = Shown()
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.delenv("SLT_PROGRESS", raising=False)
    return display


def test_one_picture_per_call_drawn_at_most_once_per_pause_and_complete(make_study, shown, monkeypatch):
    study, found = make_study({"seeds": [1]}), []
    monkeypatch.delenv("SLT_PROGRESS", raising=False)
    real = pictures.plot_curves
    monkeypatch.setattr(pictures, "plot_curves", lambda curves, steps: found.append(curves) or real(curves, steps))
    study.follow([study.chain(techniques.slt, 1, [0.5])])
    # the first checkpoint, and the end of each of the two trainings at most: the rest falls into the pause
    assert 2 <= len(shown.images) == len(found) <= 3
    assert [len(curve.points) for curve in found[-1]] == [4, 4]
    study.follow([study.chain(techniques.slt, 1, [0.5])])
    assert len(found) == len(shown.images) <= 3  # from the store: nothing is under way


def test_trainings_without_rows_have_the_variant_of_their_chain(make_study, monkeypatch):
    study, found = make_study({"seeds": [1]}), []
    monkeypatch.setattr(pictures, "plot_curves", lambda curves, steps: found.extend(curves))
    chains = [study.chain(techniques.slt, 1, [0.5]), study.chain(techniques.slt_control, 1, control="mask", at=0.6)]
    notebook.show_curves(study.follow(chains))
    pruned = sorted((curve.sparsity, curve.variant) for curve in found if curve.sparsity)
    assert pruned == [(0.5, ""), (0.5, chains[1].variant), (0.6, chains[1].variant)] and chains[1].variant


def test_runs_of_worker_processes_are_drawn_as_they_end(make_study, shown, monkeypatch):
    study = make_study({"seeds": [1]})
    monkeypatch.delenv("SLT_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    monkeypatch.setattr(progress, "SHARE", 1e9)
    study.follow([study.chain(techniques.slt, 1, [0.5])], jobs=2)
    assert len(shown.images) == 2


def test_lines_and_worker_processes_show_no_picture(shown, monkeypatch):
    assert progress.Progress().picture.show
    assert not progress.Progress(lines=True).picture.show
    monkeypatch.setenv("SLT_PROGRESS", "lines")
    assert not progress.Progress().picture.show


def test_a_line_of_the_log_is_written_at_once(make_study, monkeypatch):
    """Several processes share a log; where Python does not buffer, a line of two writes could be broken by another."""
    study, written = make_study({"seeds": [1]}), []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    study.follow([study.chain(techniques.dense, 1)])
    lines = [text for text in written if text]
    assert len(lines) == 4 and all(": step " in line and line.endswith("%\n") for line in lines)


def test_a_curve_without_points_is_no_error():
    assert drawn(pictures.plot_curves([Curve("slt", 0.5, 1, [])], 10))
