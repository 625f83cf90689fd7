"""JupyterLab and the report in a real browser: Playwright drives the system's Chromium.

A server with a copy of the notebooks, a tiny study and an empty store is started once. Pictures of what was seen go to
build/screens/. Skipped where Chromium or Playwright is missing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import TINY, changed

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = Path(__file__).resolve().parent.parent
SCREENS = ROOT / "build" / "screens"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: `apt-get install chromium`")
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
TOKEN, SIDE_BY_SIDE, PATIENCE = "browser-test", 2, 300.0  # seconds, on a busy machine
STUDY = changed(TINY, {"seeds": [1], "levels": [0.5, 0.8], "ablations": ["signs"]})
FAST = {  # knobs that keep a notebook short; everything else is as committed
    "08_ablations": {"comparisons": ["signs"]},
    "10_dissect": {"sentences": 10, "probe_sentences": 60, "probe_techniques": ["mp"], "probe_levels": [0.8]},
    "12_sparse": {"sentences": 4, "seconds": 0.01},
}
STATE = """path => {
  const panel = [...jupyterapp.shell.widgets('main')].find(one => one.context && one.context.path === path);
  if (!panel || !panel.content.model) return null;
  const cells = [...panel.content.model.cells].filter(one => one.type === 'code' && one.sharedModel.source.trim());
  const failed = cells.filter(one => one.outputs.toJSON().some(output => output.output_type === 'error'));
  const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
  return {failed: failed.length, left: cells.filter(one => one.executionCount === null).length,
          waiting: cells.filter(one => one.executionState === 'running').length,
          kernel: kernel ? kernel.status : ''};
}"""
OPEN = """async ([path, id]) => {
  await jupyterapp.commands.execute('docmanager:open', {path, ...(id && {kernel: {id, name: 'python3'}})});
}"""
CLOSE = """async ([path, end]) => {
  const panel = [...jupyterapp.shell.widgets('main')].find(one => one.context && one.context.path === path);
  await panel.context.save();
  const id = panel.sessionContext.session.kernel.id;
  if (end) await panel.sessionContext.shutdown();
  panel.dispose();
  return id;
}"""


def copy(notebook: Path, target: Path, **values) -> Path:
    """A copy without outputs, with other values in its parameters cell."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in values.items():
                cell.source, found = re.subn(
                    rf"(?m)^({name}: \w+ = ).*$", lambda m, v=value: f"{m[1]}{v!r}", cell.source
                )
                assert found == 1, f"{notebook.name} has no parameter {name}"
    nbformat.write(content, target)
    return target


def faults(path: Path) -> list[str]:
    """What is wrong with an executed notebook: errors, and cells that were not run."""
    found = []
    for cell in (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"):
        if cell.source.strip() and cell.execution_count is None:
            found.append(f"{path.stem}: not run: {cell.source.splitlines()[0]}")
        found += [f"{path.stem}: {one.ename}: {one.evalue}" for one in cell.outputs if one.output_type == "error"]
    return found


class Lab:
    """JupyterLab in a page of the browser. Notebooks are named by their stem."""

    def __init__(self, folder: Path, page):
        self.folder, self.page = folder, page

    def path(self, name: str) -> str:
        return f"notebooks/{name}.ipynb"

    def open(self, name: str, kernel: str = "") -> None:
        """Open a notebook or turn to it. `kernel`: the id of a running one that a new notebook uses."""
        self.page.evaluate(OPEN, [self.path(name), kernel])
        self.wait(lambda: (state := self.state(name)) and state["kernel"] == "idle", f"{name}: no kernel")

    def menu(self, title: str, command: str) -> None:
        """Choose an entry of the menu bar by its text."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{title}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{command}$")).click()

    def run_all(self, name: str, kernel: str = "") -> None:
        self.open(name, kernel)
        self.menu("Run", "Run All Cells")

    def state(self, name: str) -> dict | None:
        return self.page.evaluate(STATE, self.path(name))

    def ended(self, name: str) -> bool:
        """Whether all cells were run, or one failed and the kernel has dropped the others.

        A kernel is "idle" after the failed cell, before it drops those that wait; until then it drops new ones too.
        """
        state = self.state(name)
        return state["kernel"] == "idle" and not state["waiting"] and (state["failed"] > 0 or not state["left"])

    def wait(self, condition, what: str, seconds: float = PATIENCE):
        until = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < until, what
            self.page.wait_for_timeout(100)
        return value

    def close(self, name: str, end: bool = True) -> str:
        """Keep a picture, save and close the notebook, end its kernel if `end`; the id of the kernel."""
        self.page.evaluate(OPEN, [self.path(name), ""])
        self.page.screenshot(path=SCREENS / f"{name}.png")
        return self.page.evaluate(CLOSE, [self.path(name), end])

    def faults(self, name: str) -> list[str]:
        return faults(self.folder / self.path(name))

    def run_many(self, names: list[str]) -> list[str]:
        """Run notebooks from the menu in their order, two at once; all faults.

        A notebook takes over the kernel of one that has ended: to import everything takes longer than most notebooks.
        """
        waiting, running, kernels = list(names), [], [""] * SIDE_BY_SIDE
        while waiting or running:
            while waiting and kernels:
                running.append(waiting.pop(0))
                self.run_all(running[-1], kernels.pop(0))
            ready = self.wait(lambda: [name for name in running if self.ended(name)], f"too slow: {running}")
            for name in ready:
                running.remove(name)
                kernels.append(self.close(name, end=len(waiting) < len(kernels) + 1))
        return [fault for name in names for fault in self.faults(name)]


@pytest.fixture(scope="module")
def browser():
    SCREENS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The copied notebooks and a tiny study."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "params"):
        (folder / name).mkdir()
    (folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    shutil.copytree(ROOT / "figures" / "multi30k", folder / "figures" / "multi30k")
    for name in NAMES:
        values = {} if name == "00_start" else {"study_name": "tiny"}
        copy(
            ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb", **values, **FAST.get(name, {})
        )
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Its address with the token. Port 0: the server takes a free one and tells it in a file."""
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    own |= {"SLT_RUNS": str(folder / "runs"), "SLT_FIGURES": str(folder / "figures"), "OMP_NUM_THREADS": "1"}
    own |= {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "SLT_DEVICE": "cpu"}
    environment = {name: value for name, value in os.environ.items() if name not in ("SLT_PROGRESS", "SLT_DATA")} | own
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}", "--expose-app-in-browser"]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        until, told = time.monotonic() + PATIENCE, folder / "runtime" / f"jpserver-{process.pid}.json"
        while not told.exists():
            assert process.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()
            time.sleep(0.1)
        time.sleep(0.2)
        yield json.loads(told.read_text())["url"]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def lab(server, folder, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    page.goto(f"{server}lab/tree/notebooks/00_start.ipynb?token={TOKEN}")
    page.wait_for_selector(".jp-Notebook", timeout=1000 * PATIENCE)
    yield Lab(folder, page)
    page.close()


def test_make_lab_opens_on_the_first_ten_minutes(lab):
    assert "notebooks/00_start.ipynb" in re.search(r"(?ms)^lab:.*?^$", (ROOT / "Makefile").read_text())[0]
    assert "first ten minutes" in lab.page.locator(".jp-Notebook h1").first.inner_text()
    lab.page.wait_for_timeout(2000)
    assert not lab.page.get_by_text("Jupyter news").count()  # the Makefile's settings


def test_a_slider_moves_and_the_picture_changes(lab):
    lab.run_all("00_start")
    lab.wait(lambda: lab.ended("00_start"), "00_start: too slow")
    slider = lab.page.locator(".widget-slider .noUi-handle").first
    slider.wait_for(timeout=1000 * PATIENCE)
    picture = lab.page.locator(".jp-OutputArea-output img").nth(1)
    table = lab.page.locator(".jp-OutputArea-output table").first
    before = picture.get_attribute("src"), table.inner_text()
    lab.page.screenshot(path=SCREENS / "slider_before.png")
    slider.press("ArrowLeft")
    lab.wait(lambda: picture.get_attribute("src") != before[0], "the picture stays the same", 30)
    lab.wait(lambda: table.inner_text() != before[1], "the table stays the same", 30)
    lab.page.screenshot(path=SCREENS / "slider_after.png")
    lab.close("00_start")
    assert not lab.faults("00_start")


def test_every_notebook_runs_to_its_end_from_the_menu(lab):
    assert not lab.run_many([name for name in NAMES if name != "00_start"])


def test_a_notebook_that_raises_is_found(lab):
    path = lab.folder / lab.path("raises")
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", "raise ValueError('on purpose')", "2 + 2")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    found = lab.run_many(["raises"])
    assert found == ["raises: ValueError: on purpose", "raises: not run: 2 + 2"]


def test_an_interrupted_training_continues(lab):
    study = lab.folder / "params" / "longer.yaml"
    longer = {"training": {"steps": 600, "checkpoint": 0.1}, "keep": [0.1], "levels": [0.5], "seeds": [1]}
    study.write_text(yaml.safe_dump(changed(TINY, longer)), encoding="utf-8")
    before = set((lab.folder / "runs").glob("*/ticket.json"))
    copy(ROOT / "notebooks" / "01_dense.ipynb", lab.folder / lab.path("longer"), study_name="longer")
    lab.run_all("longer")

    def kept() -> list[Path]:
        new = set((lab.folder / "runs").glob("*/ticket.json")) - before
        return [path for one in new for path in one.parent.glob("theta_0000060.safetensors")]

    [early] = lab.wait(kept, "the training does not begin")
    wrote = early.stat().st_mtime_ns
    lab.menu("Kernel", "Interrupt Kernel")
    lab.wait(lambda: lab.state("longer")["failed"], "not interrupted")
    lab.page.screenshot(path=SCREENS / "interrupted.png")
    assert not (early.parent / "run.json").exists() and (early.parent / "resume.safetensors").exists()
    lab.wait(lambda: lab.ended("longer"), "the kernel is still busy")
    lab.menu("Run", "Run All Cells")
    lab.wait(lambda: (state := lab.state("longer")) and not state["failed"] and lab.ended("longer"), "did not continue")
    lab.close("longer")
    assert not lab.faults("longer")
    assert (early.parent / "run.json").exists() and early.stat().st_mtime_ns == wrote  # not trained again from 0


def watched(browser, path: Path, width: int):
    """A page of a file without network, and the list of its script errors."""
    page, errors = browser.new_page(viewport={"width": width, "height": 1000}), []
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_timeout(500)
    return page, errors


@pytest.mark.parametrize("width", [1400, 390])
def test_the_published_report_fits_the_screen_and_has_no_script_error(browser, width):
    """Reports of other studies: `test_report_page`."""
    page, errors = watched(browser, ROOT / "figures" / "multi30k" / "report.html", width)
    page.screenshot(path=SCREENS / f"report_multi30k_{width}.png")
    assert not errors
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
