"""Checks of the committed notebooks as files. nbval executes them."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from slt_lib.study.notebook import check_masks, list_runs

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TYPES = {"str": str, "float": float, "int": int, "list": list, "bool": bool}


def code(notebook):
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def parameters(notebook):
    return [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_the_notebooks_are_there():
    names = "00_corpus 00_start 01_dense 02_mp 03_lt 04_slt 05_clt 06_slt_mp 07_mp_slt 08_ablations".split()
    names += "10_dissect 11_subnetworks 12_sparse 99_report".split()
    assert [path.stem for path in NOTEBOOKS] == names


def test_one_parameters_cell_with_types_defaults_and_comments(notebook):
    [cell] = parameters(notebook)
    for line in cell.source.splitlines():
        name, kind, default, comment = re.fullmatch(r"(\w+): (\w+) = (.+?)  # (.+)", line).groups()
        assert isinstance(eval(default), TYPES[kind]), f"{name} is no {kind}"
        assert comment
    names = re.findall(r"^(\w+):", cell.source, re.MULTILINE)
    start = notebook.stem == "00_start"  # shows figures: no seeds are chosen
    assert names[:3] == ["study_name", "pair", "model" if start else "seeds"]
    assert f'study_name: str = "{"multi30k" if start else "quick"}"' in cell.source


def test_kernel_is_python3(notebook):
    assert nbformat.read(notebook, as_version=4).metadata.kernelspec.name == "python3"


def test_every_cell_was_executed_in_order_without_an_error(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert any(cell.outputs for cell in cells)


def test_outputs_contain_no_local_paths_and_no_times(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    for stray in ('"execution": {', '"papermill": {', "application/vnd.jupyter.widget"):
        assert stray not in text


def test_begins_with_a_title_and_has_text(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {notebook.stem[:2]} · ")
    assert sum(cell.cell_type == "markdown" for cell in cells) >= 4


ORDER = sorted(NOTEBOOKS, key=lambda path: (path.stem != "00_start", path.stem))


def links(notebook):
    """The line under the title: to the start, to the previous and to the next notebook."""
    place = ORDER.index(notebook)
    neighbours = {"previous": ORDER[place - 1] if place else None, "next": (ORDER[place + 1 :] or [None])[0]}
    shown = ["[00 · Start](00_start.ipynb)"] if place else []
    for name, path in neighbours.items():
        if path:
            title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
            shown.append(f"{name}: [{title.partition(':')[0]}]({path.name})")
    return " · ".join(shown)


def test_links_to_the_previous_and_the_next_notebook(notebook):
    assert nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[2] == links(notebook)


def test_links_lead_to_files_and_the_start_names_every_notebook(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    linked = {link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link}
    assert all((notebook.parent / link).exists() for link in linked)
    assert notebook.stem != "00_start" or linked == {path.name for path in NOTEBOOKS} - {notebook.name}


def test_papermill_explains_the_parameters(notebook):
    """Papermill reads names, types, defaults and comments from the text of the cell; it must find all."""
    from papermill.inspection import inspect_notebook

    found = inspect_notebook(str(notebook))
    [cell] = parameters(notebook)
    assert set(found) == set(re.findall(r"^(\w+):", cell.source, re.MULTILINE))
    assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in found.values())


def test_the_command_line_of_papermill_prints_them():
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(ROOT / "notebooks" / "04_slt.ipynb")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "rewind: float" in shown and "as a fraction of the training" in shown


@pytest.mark.parametrize(("folder", "transport"), [("", "ipc"), ("long-" * 20, "tcp")])
def test_kernels_use_unix_sockets_if_the_path_is_short_enough(tmp_path, folder, transport):
    ask = "import json\nfrom ipykernel import get_connection_file\n"
    cell = nbformat.v4.new_code_cell(ask + "print(json.load(open(get_connection_file()))['transport'])")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "in.ipynb")
    out = tmp_path / "out.ipynb"
    with tempfile.TemporaryDirectory() as short:
        there = Path(short) / folder
        there.mkdir(exist_ok=True)
        command = [sys.executable, "notebooks/papermill", tmp_path / "in.ipynb", out, "-k", "python3"]
        variables = os.environ | {"TMPDIR": str(there)}
        subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    [cell] = nbformat.read(out, as_version=4).cells
    assert cell.outputs[0].text.strip() == transport


def run(sparsity, kept, parent=None):
    mask = None if kept is None else {"w": torch.tensor(kept).bool()}
    ticket = SimpleNamespace(trained_with="slt", runs={"parent": parent} if parent else {})
    return SimpleNamespace(id="0123456789abcdef", record={"status": "ok"}, sparsity=sparsity, mask=mask, ticket=ticket)


def test_the_shared_cells_list_runs_and_check_masks(capsys):
    dense, half = run(0.0, None), run(0.5, [0, 0, 1, 1])
    runs = [dense, half, run(0.75, [0, 0, 0, 1], half), run(0.75, [1, 0, 0, 0], half), run(0.75, [0, 0, 1, 1], half)]
    chain = SimpleNamespace(seed=3, runs=runs)
    list_runs([chain])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["seed 3  slt 0%  0123456789ab  ok", "seed 3  slt 50%  0123456789ab  ok"] and len(lines) == 5
    check_masks([chain])
    assert capsys.readouterr().out.splitlines() == [
        "seed 3  50%  kept 2  exact True  nested True",
        "seed 3  75%  kept 1  exact True  nested True",
        "seed 3  75%  kept 1  exact True  nested False",
        "seed 3  75%  kept 2  exact False  nested True",
    ]
