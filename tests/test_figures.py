"""The committed figures: tables, plots, verdicts and the README's section come again from their CSV files alone."""

import gzip
import json
import shutil

import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

from slt_lib import report
from slt_lib.params import home
from slt_lib.report.data import KINDS

SOURCES = ["study.json", *(name for name, _, _ in KINDS.values())]
COMMITTED = sorted(path.parent for path in (home() / "figures").glob("*/results.csv") if path.parent.name != "quick")

pytestmark = pytest.mark.skipif(not COMMITTED, reason="no figures of a real study are committed in this checkout")


@pytest.fixture(scope="module", params=COMMITTED, ids=lambda folder: folder.name)
def folders(request, tmp_path_factory):
    """A committed folder, and one rendered from its sources alone."""
    again = tmp_path_factory.mktemp("again") / request.param.name
    again.mkdir()
    for name in SOURCES:
        shutil.copy(request.param / name, again / name)
    report.render(again)
    return request.param, again


def test_tables_verdicts_and_summary_come_again(folders):
    committed, again = folders
    texts = [path for path in sorted(again.iterdir()) if path.suffix in (".md", ".csv", ".tex")]
    assert texts
    for path in texts:
        assert (committed / path.name).read_text() == path.read_text(), path.name


def test_plots_come_again(folders):
    committed, again = folders
    plots = sorted(again.glob("*.png"))
    assert plots
    for path in plots:
        assert compare_images(str(committed / path.name), str(path), tol=2) is None, path.name


def test_the_readme_says_what_the_figures_say(folders, tmp_path):
    committed, _ = folders
    text = (home() / "README.md").read_text()
    if f"<!-- results of {committed.name}:" not in text:
        pytest.skip(f"the README does not show {committed.name}")
    (tmp_path / "README.md").write_text(text)
    report.into(report.load(committed), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_the_executed_report_shows_these_tables_and_verdicts(folders):
    committed, _ = folders
    cells = json.loads((committed / "report.ipynb").read_text())["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = "\n".join("".join(data.get("text/markdown", "")) for data in outputs)
    pairs = json.loads((committed / "study.json").read_text())["pairs"]
    for name in ("claims.md", *(f"table_{pair}.md" for pair in pairs)):
        assert (committed / name).read_text().strip() in shown, name
    assert (committed / "report.html").is_file()


def test_nothing_but_results_is_committed(folders):
    """No weights and no text of the corpus: the sentence file holds counts, and every file is small."""
    committed, _ = folders
    suffixes = {path.suffix for path in committed.iterdir() if path.is_file()}
    assert suffixes <= {".csv", ".gz", ".json", ".md", ".tex", ".png", ".svg", ".html", ".ipynb"}
    with gzip.open(committed / "sentences.csv.gz", "rt") as file:
        columns = file.readline().strip().split(",")
    assert columns == KINDS["sentences"][1]


def test_every_matrix_has_exactly_its_level(folders):
    committed, _ = folders
    runs = pd.read_csv(committed / "results.csv").query("status == 'ok'").drop_duplicates("run").set_index("run")
    matrices = pd.read_csv(committed / "magnitudes.csv")
    matrices = matrices[matrices.run.isin(runs.index)]
    size = matrices.rows * matrices["columns"]
    level = runs.sparsity[matrices.run].to_numpy()
    assert (matrices.kept == size - (level * size).round()).all()
    assert set(matrices.run) == {run.partition("+")[0] for run in runs.index}


def test_every_run_tells_its_time_and_speed(folders):
    committed, _ = folders
    runs = {run.partition("+")[0] for run in pd.read_csv(committed / "results.csv").run}
    known = pd.read_csv(committed / "provenance.csv").set_index("run")
    assert set(known.index) >= runs
    assert (known.seconds > 0).all() and (known.tokens_per_second > 0).all()
