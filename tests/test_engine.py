"""A notebook gives the same rows under Snakemake, under papermill and by hand, and nothing is trained twice."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.techniques import RECIPES

ROOT = Path(__file__).resolve().parent.parent
STUDY = {
    "rehearsal": True,
    "pairs": {"en-de": ["slt"]},
    "seeds": [1],
    "levels": [0.5],
    "corpus": {"name": "grammar", "train": 300, "dev": 20, "test": 20},
    "vocabulary": 300,
    "training": {
        "model": {"layers": 1, "hidden": 16, "filter": 32, "heads": 2},
        "batch": {"rows": 8, "length": 48},
        "steps": 20,
        "peak_lr": {"adafactor": 0.05},
        "checkpoint": 0.5,
        "dev_sentences": 10,
        "dev_extra": 5,
    },
    "decoding": {"extra": 5},
}
PART = "en-de.slt.default.0.5.1.json.gz"


def test_every_technique_has_its_own_recipe_notebook_and_style():
    assert list(RECIPES) == ["dense", *TECHNIQUES]
    rows = [DENSE, *TECHNIQUES.values()]
    assert all((ROOT / "notebooks" / f"{row.notebook}.ipynb").is_file() for row in rows)
    for column in ("label", "notebook", "colour", "marker"):
        assert len({getattr(row, column) for row in rows}) == len(rows), column


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the files that a study needs, with a tiny study; the checkout is not changed."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "params").mkdir()
    (folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


def call(project, *command, cwd=None, **environment):
    """The output of a command in the project, with this Python's environment. It must succeed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLT_")}
    clean |= {"PATH": f"{Path(sys.executable).parent}:{clean['PATH']}", "JUPYTER_PREFER_ENV_PATH": "1"} | environment
    run = subprocess.run(command, cwd=cwd or project, env=clean, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def engine(project):
    """The project after one run of snakemake, as in `make study`."""
    call(project, "snakemake", "--profile", "profiles/default", "--config", "study=tiny")
    return project


def part(path):
    """A part without its provenance, which contains times."""
    return {kind: rows for kind, rows in json.loads(gzip.decompress(path.read_bytes())).items() if kind != "provenance"}


def rows(folder):
    return part(folder / "tiny" / "parts" / PART)


def test_snakemake_papermill_and_a_person_get_the_same_rows(engine, tmp_path):
    """Each has its own store and figures folder, so each one trains."""
    expected = rows(engine / "figures")

    papermill = tmp_path / "papermill"
    stores = {"SLT_RUNS": str(papermill / "runs"), "SLT_FIGURES": str(papermill / "figures")}
    out = str(tmp_path / "out.ipynb")
    call(engine, "papermill", "notebooks/04_slt.ipynb", out, "-k", "python3", "-p", "study_name", "tiny", **stores)
    assert rows(papermill / "figures") == expected

    hand = tmp_path / "hand"
    stores = {"SLT_RUNS": str(hand / "runs"), "SLT_FIGURES": str(hand / "figures")}
    notebook = nbformat.read(engine / "notebooks" / "04_slt.ipynb", as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = cell.source.replace('study_name: str = "quick"', 'study_name: str = "tiny"')
    nbformat.write(notebook, engine / "notebooks" / "edited.ipynb")
    call(
        engine,
        *("jupyter", "nbconvert", "--to", "notebook", "--execute", "edited.ipynb", "--output", "done"),
        cwd=engine / "notebooks",
        **stores,
    )
    assert rows(hand / "figures") == expected


def trained(folder):
    """The time at which each run was finished; training again would change it."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


def test_a_second_call_changes_nothing(engine):
    before, table = trained(engine), (engine / "figures/tiny/results.csv").read_bytes()
    said = call(engine, "snakemake", "--profile", "profiles/default", "--config", "study=tiny")
    assert "Nothing to be done" in said
    assert (trained(engine), (engine / "figures/tiny/results.csv").read_bytes()) == (before, table)


def test_an_edited_comment_and_deleted_figures_train_nothing(engine, tmp_path):
    """The notebook runs again, finds all in the store, and the report comes again."""
    project = Path(shutil.copytree(engine, tmp_path / "project"))
    before, table = trained(project), (project / "figures/tiny/results.csv").read_bytes()
    path = project / "notebooks" / "04_slt.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source += "\n# a comment"
    nbformat.write(notebook, path)
    shutil.rmtree(project / "figures")
    report = "figures/tiny/markers/99_report.done"
    call(project, "snakemake", "--profile", "profiles/default", "--config", "study=tiny", "--", report)
    assert (trained(project), (project / "figures/tiny/results.csv").read_bytes()) == (before, table)


def test_every_comparison_of_the_ablations_runs(engine, tmp_path):
    """Also those that the quick study does not run."""
    names = "signs frankle rewind source one-shot stepwise switch optimizer average controls again".split()
    stores = {"SLT_RUNS": str(tmp_path / "runs"), "SLT_FIGURES": str(tmp_path / "figures")}
    out = str(tmp_path / "out.ipynb")
    asked = f"{{study_name: tiny, comparisons: [{', '.join(names)}]}}"
    call(engine, "papermill", "notebooks/08_ablations.ipynb", out, "-k", "python3", "-y", asked, **stores)
    parts = (tmp_path / "figures/tiny/parts").glob("*.json.gz")
    found = {row[3] for path in parts for row in part(path)["results"]}
    wanted = "signs=random magnitudes=shuffled rewind=1.0 source=dense iterative=False stepwise=True optimizer=adam"
    wanted = {*wanted.split(), "checkpoint=average 4", "control=mask", "control=weights"}
    assert wanted <= found


def test_each_level_of_mp_is_a_job(project):
    """Unless the study is a rehearsal."""
    settings = STUDY | {"rehearsal": False, "pairs": {"en-de": ["mp"]}}
    (project / "params" / "levels.yaml").write_text(yaml.safe_dump(settings))
    parts = project / "figures" / "levels" / "parts"
    marker = "figures/levels/markers/02_mp.en-de.seed1.level0.5.done"
    call(project, "snakemake", "--profile", "profiles/default", "--config", "study=levels", "--", marker)
    assert (project / marker).exists() and (parts / "en-de.mp.default.0.5.1.json.gz").exists()


def test_empty_variables_are_unset(project):
    said = call(project, "snakemake", "--summary", "--config", "study=tiny", SLT_FIGURES="", SLT_BUILD="")
    files = {line.split("\t")[0] for line in said.splitlines()}
    assert {"figures/tiny/markers/99_report.done", "build/tiny/en-de/04_slt.ipynb"} <= files
