"""Figures folders: tables, plots, verdicts and the README's section come again from their CSV files alone.

The committed ones, where there are any, and one that is made here of a tiny study.
"""

import gzip
import json
import shutil

import pandas as pd
import pytest
import yaml
from conftest import TINY
from matplotlib.testing.compare import compare_images

from slt_lib import report
from slt_lib.base.settings import home
from slt_lib.base.store import digest
from slt_lib.report.data import KINDS
from slt_lib.report.merging import versions
from slt_lib.report.summary import BEGIN, END, uncommitted
from slt_lib.study import Study, results
from slt_lib.techniques import mp, slt
from slt_lib.train import checkpoint

SOURCES = ["study.json", *(name for name, _, _ in KINDS.values())]
MEASURED = ("dissect_", "subnet_", "stability.")  # by notebooks 10 and 11, and the comparison `stability`
COMMITTED = sorted(path.parent for path in (home() / "figures").glob("*/results.csv") if path.parent.name != "quick")


def make(folder):
    """A study of two techniques and two seeds, its figures, and a README that shows them."""
    settings = TINY | {"rehearsal": False, "pairs": {"en-de": ["mp", "slt"]}, "levels": [0.5, 0.8]}
    (folder / "made.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("runs", "figures"):
            patch.setenv(f"SLT_{name.upper()}", str(folder / name))
        patch.setattr(checkpoint, "commit", lambda: "0123456789ab")  # whatever the state of this checkout
        study = Study(str(folder / "made.yaml"))
        results.record(study, study.follow(study.chain(recipe, seed) for seed in study.seeds for recipe in (mp, slt)))
    figures = folder / "figures" / "made"
    report.render(figures)
    (folder / "README.md").write_text(f"{BEGIN.format('made', 'made', 'README.md')}\n{END}\n")
    report.into(report.load(figures), folder / "README.md")
    return figures


@pytest.fixture(scope="module", params=[None, *COMMITTED], ids=lambda folder: folder.name if folder else "made")
def committed(request, tmp_path_factory):
    return request.param or make(tmp_path_factory.mktemp("study"))


def test_tables_verdicts_summary_and_plots_come_again(committed, tmp_path):
    """A folder rendered from its sources alone. One test, since rendering takes long."""
    again = tmp_path / committed.name
    again.mkdir()
    measured = [path.name for path in committed.glob("*.csv*") if path.name.startswith(MEASURED)]
    for name in [*SOURCES, *(name for name in measured if "_findings_" not in name)]:
        shutil.copy(committed / name, again / name)
    report.render(again)
    texts = [path for path in sorted(again.iterdir()) if path.suffix in (".md", ".csv", ".tex")]
    plots = sorted(again.glob("*.png"))
    assert texts and plots
    for name in SOURCES:
        assert (committed / name).read_bytes() == (again / name).read_bytes(), name
    for path in texts:
        assert (committed / path.name).read_text() == path.read_text(), path.name
    for path in plots:
        assert compare_images(str(committed / path.name), str(path), tol=2) is None, path.name


def test_the_readme_says_what_the_figures_say(committed, tmp_path):
    text = next(
        path for path in (committed.parents[1] / "README.md", home() / "README.md") if path.exists()
    ).read_text()
    if f"<!-- results of {committed.name}:" not in text:
        pytest.skip(f"the README does not show {committed.name}")
    (tmp_path / "README.md").write_text(text)
    report.into(report.load(committed), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_the_executed_report_shows_these_tables_and_verdicts(committed):
    if committed not in COMMITTED:
        pytest.skip("the engine writes that report")
    cells = json.loads((committed / "report.ipynb").read_text())["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = "\n".join("".join(data.get("text/markdown", "")) for data in outputs)
    pairs = json.loads((committed / "study.json").read_text())["pairs"]
    for name in ("claims.md", *(f"table_{pair}.md" for pair in pairs)):
        assert (committed / name).read_text().strip() in shown, name
    assert (committed / "report.html").is_file()


def test_nothing_but_results_is_committed(committed):
    """No weights and no text of the corpus: the sentence file holds counts, and every file is small."""
    suffixes = {path.suffix for path in committed.iterdir() if path.is_file()}
    assert suffixes <= {".csv", ".gz", ".json", ".md", ".tex", ".png", ".svg", ".html", ".ipynb"}
    with gzip.open(committed / "sentences.csv.gz", "rt") as file:
        columns = file.readline().strip().split(",")
    assert columns == KINDS["sentences"][1]


def test_every_matrix_has_exactly_its_level(committed):
    runs = pd.read_csv(committed / "results.csv").query("status == 'ok'").drop_duplicates("run").set_index("run")
    matrices = pd.read_csv(committed / "magnitudes.csv")
    matrices = matrices[matrices.run.isin(runs.index)]
    whole = matrices.groupby("run").kept.sum()
    assert (whole == runs.kept.groupby(level=0).first().reindex(whole.index)).all()
    uneven = runs.index[runs.variant.astype(str).str.contains("scope=global|subnetwork=structured")]
    even = matrices[~matrices.run.isin(uneven)]  # the others prune a share of all matrices together
    size = even.rows * even["columns"]
    level = runs.sparsity[even.run].to_numpy()
    assert (even.kept == size - (level * size).round()).all()
    assert set(matrices.run) == {run.partition("+")[0] for run in runs.index}


def test_every_run_tells_its_time_and_speed(committed):
    runs = {run.partition("+")[0] for run in pd.read_csv(committed / "results.csv").run}
    known = pd.read_csv(committed / "provenance.csv").set_index("run")
    assert set(known.index) >= runs
    assert (known.seconds > 0).all() and (known.tokens_per_second > 0).all()


def test_every_run_is_of_committed_code(committed):
    assert uncommitted(report.load(committed)) == {}


def test_all_rows_are_of_one_version(committed):
    study = json.loads((committed / "study.json").read_text())
    assert {"recipe", "score", "settings"} <= set(study["versions"])
    assert study["merged"] == versions(study)
    assert study["versions"]["settings"] == digest(study["settings"])[:16]
