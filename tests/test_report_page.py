"""The report as a page: notebook 99, executed here cell by cell, of studies whole, begun and failed."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from test_report import fail_rows, make_folder

from slt_lib import report
from slt_lib.__main__ import main
from slt_lib.base.errors import InputError
from slt_lib.base.settings import home
from slt_lib.report import forest, page, statistics
from slt_lib.report.claims import CLAIMS

LIMIT = 3_000_000  # bytes of a page
NOTEBOOK = home() / "notebooks" / "99_report.ipynb"
CODE = "The code of this page"


def begun(folder):
    """Two pairs, of which one has the dense run and one row of MP, with one seed: the first hours of a study."""
    make_folder(folder)
    report.merge(folder)
    shutil.rmtree(folder / "parts")
    about = json.loads((folder / "study.json").read_text())
    about["pairs"]["en-fr"], about["test_sets"]["en-fr"] = ["mp", "slt"], ["test_a"]
    (folder / "study.json").write_text(json.dumps(about))
    head, *rows = (folder / "results.csv").read_text().splitlines()
    kept = [row for row in rows if re.match(r"made,en-de,(dense,,dense,0\.0|mp,,mp,0\.5),1,", row)]
    assert len(kept) == 4  # two test sets
    (folder / "results.csv").write_text("\n".join([head, *kept]) + "\n")
    return folder


def failed(folder):
    """A rehearsal with a technique and a level of which every run failed."""
    made = make_folder(folder, rehearsal=True)
    return fail_rows(made, lambda row: row["technique"] == "lt" or row["sparsity"] == "0.9")


STUDIES = {"whole": make_folder, "begun": begun, "failed": failed}


def execute(folder, patch):
    """Notebook 99 on a figures folder, its cells run in this process; report.ipynb is written there."""
    patch.setenv("SLT_FIGURES", str(folder.parent))
    patch.setattr(report, "save_plot", lambda *_: [])  # the files of the plots take long, and the page has its own
    notebook, shell = nbformat.read(NOTEBOOK, as_version=4), InteractiveShell.instance()
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
        cell.outputs = []
        if "of_random_weights" in cell.source:
            continue  # takes long, and is of no study
        source = cell.source.replace('study_name: str = "quick"', f'study_name: str = "{folder.name}"')
        with capture_output() as said:
            shell.run_cell(source).raise_error()
        cell.outputs = [
            nbformat.v4.new_output("display_data", data=output.data, metadata=output.metadata or {})
            for output in said.outputs
        ]
    InteractiveShell.clear_instance()
    nbformat.write(notebook, folder / page.NOTEBOOK)


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory):
    """Figures, page and claims of one of STUDIES."""
    folder = STUDIES[request.param](tmp_path_factory.mktemp("figures") / "made")
    with pytest.MonkeyPatch.context() as patch:
        execute(folder, patch)
    figures = report.load(folder)
    return figures, report.write_page(folder), report.claims_table(figures)


class Reader(HTMLParser):
    """What a page loads and shows: addresses, texts of pictures, words outside and inside of the folded code."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.alts, self.words, self.inside = [], [], [], []
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.inside += [tag] if tag in ("script", "style", "pre") else []
        self.loads += [about[key] for key in ("src", "href", "data", "poster") if tag != "a" and about.get(key)]
        if tag == "img":
            self.alts.append(about.get("alt", ""))

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words.append(data)
        elif self.inside[-1] == "style":
            assert "@import" not in data and "url(" not in data


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def must_stand_alone(path):
    shown = read(path)
    assert path.stat().st_size <= LIMIT
    assert all(address.startswith("data:") for address in shown.loads), [one[:80] for one in shown.loads]
    assert shown.alts and all(shown.alts)
    before, found, _ = shown.text.partition(CODE)
    assert found and not re.search(r"\bimport |display\(|report\.\w+\(|_en-de\.(png|svg|tex)", before)


def test_a_page_stands_alone_and_shows_no_code(study):
    must_stand_alone(study[1])


def test_the_committed_page_stands_alone_too():
    pages = [path for path in (home() / "figures").glob(f"*/{page.PAGE}") if path.parent.name != "quick"]
    for path in pages:
        must_stand_alone(path)
        assert CODE in path.read_text(encoding="utf-8") and "sentences.csv.gz" not in read(path).text


def test_it_begins_with_a_few_sentences(study):
    figures, path, judged = study
    told = report.headline(figures, judged)
    assert len(told) == 5 - figures.rehearsal
    for sentence in told:
        assert sentence[0].isupper() and re.findall(r"[.!?](?=\s|$)", sentence) == ["."], sentence
    assert re.sub(r"\s+", " ", " ".join(told)) in re.sub(r"\s+", " ", read(path).text)


def test_the_sentences_say_what_ran_and_what_is_missing(study, request):
    figures, _, judged = study
    ran, scores, *_, contradicts, missing = report.headline(figures, judged)
    agrees = report.headline(figures, judged)[2]
    assert f"{figures.cell('en-de', 'dense', 0).mean('bleu'):.1f} BLEU on en-de (paper: 26.8" in scores
    name = request.node.callspec.params["study"]
    if name == "begun":
        assert "2 scored trainings: en-de, seed 1, 1 of 6 techniques (MP) at up to 1 of 4 levels" in ran
        assert "all of en-fr" in missing and "all runs for 1" in missing
        assert "a seed in 2 cells" in missing and "agrees with 0 of the paper's 19 claims" in agrees
    elif name == "failed":
        assert "withheld" in contradicts and "no evidence; runs failed in 9 cells" in missing
    else:
        assert missing == "Nothing is missing." and "seeds 1 and 2" in ran
        for sentence, verdict in ((agrees, "holds"), (contradicts, "fails")):
            rows = judged.frame[(judged.frame.verdict == verdict) & (judged.frame.source != report.judging.CONTROL)]
            assert f" {len(rows)} of the paper's 19 claims" in sentence
            assert all(statement in sentence for statement in rows.statement)
        undecided = judged.frame[(judged.frame.verdict == "undecided") & (judged.frame.supported != "")]
        undecided = undecided[undecided.source != report.judging.CONTROL]
        assert all(f"{row.statement}" in contradicts and row.supported in contradicts for row in undecided.itertuples())


def test_every_claim_has_one_line_in_plot_and_table(study):
    figures, path, claims = study
    names = [claim.statement for claim in CLAIMS]
    drawn = [text.get_text() for axes in report.plot_forest(figures, claims, "en-de").axes for text in axes.texts]
    rows = [line.strip("| ").split(" | ") for line in report.short_table(claims, "en-de").splitlines()[2:]]
    for lines in (drawn[::2], [row[0] for row in rows]):
        assert sorted(line.removesuffix(" (TER)") for line in lines) == sorted(names)
    for row in rows:
        assert len(row) == 4 and len(row[3].split()) <= forest.WORDS, row
    assert all(re.sub(r"\W", "", name) in re.sub(r"\W", "", read(path).text) for name in names)


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("", "3 of 4 contrasts agree"),
        ("no rows", "not run yet"),
        ("contradicted by MP 85% - MP-SLT 85%; all agree from 90%", "contradicted by MP 85% - MP-SLT 85%"),
        ("one seed: the noise; all agree", "one seed: the noise; all agree"),
        ("a b c d e f g h i j k l", "a b c d e f g h i j"),
    ],
)
def test_a_reason_is_cut_between_clauses(reason, short):
    assert forest.brief(reason, "3 of 4") == short


def test_a_section_without_results_is_left_out(study):
    path = study[1]
    text = path.read_text(encoding="utf-8")
    assert 'id="Claims-of-the-paper"' in text and 'id="Provenance"' in text
    for absent in ("Subnetworks", "Inside-the-models", "Size-and-speed", "The-memory-column"):
        assert f'id="{absent}"' not in text and f'href="#{absent}"' not in text
    for link in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{link}"' in text


def test_ours_stand_above_the_papers(study):
    figures = study[0]
    shown = report.beside_paper(figures, "en-de")
    dense = figures.cell("en-de", "dense", 0)
    assert f"<td>{dense.mean('bleu'):.1f}<br><small>26.8</small></td>" in shown
    assert ">LT<" in shown or not figures.begun("en-de") == [*figures.pairs["en-de"]]
    assert shown.count("<tr>") == 2 + len({row for row in figures.results.query("variant == ''").sparsity})


def test_the_interactive_plot_has_the_numbers_of_the_table(study):
    from slt_lib.report.interactive import interactive_scores

    figures, path, _ = study
    plot = interactive_scores(figures, "en-de")
    assert plot.legend[0].click_policy == "hide"
    named = {item.label.value: item.renderers for item in plot.legend[0].items}
    assert set(named) - {"failed"} == {"dense", *(report.data.label(name) for name in figures.begun("en-de"))}
    assert ("failed" in named) == bool(figures.failures("en-de"))
    points = named["MP"][-1].data_source.data
    cell = figures.cell("en-de", "mp", 0.5)
    low, high = statistics.interval(figures, "en-de", cell, "bleu")
    assert points["level"][0] == "50%" and points["shown"][0] == f"{cell.mean('bleu'):.2f}"
    assert points["bounds"][0] == f"{low:.2f} to {high:.2f}"
    assert path.read_text(encoding="utf-8").count('class="interactive"') == 1


def test_without_sentences_or_techniques_there_is_still_a_page(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "made")
    report.merge(folder)
    shutil.rmtree(folder / "parts")
    head, *rows = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("\n".join([head, *(row for row in rows if ",dense,,dense," in row)]) + "\n")
    for name in ("sentences.csv.gz", "magnitudes.csv", "provenance.csv"):
        (folder / name).unlink()
    execute(folder, monkeypatch)
    shown = report.write_page(folder)
    assert shown.stat().st_size < LIMIT / 3 and "The dense model scores" in read(shown).text


def test_a_users_own_technique_is_in_the_plot(tmp_path):
    from slt_lib.report.interactive import interactive_scores

    folder = make_folder(tmp_path / "made", user=True)
    report.merge(folder)
    figures = report.load(folder)
    bare = dataclasses.replace(figures, results=figures.results.assign(seed=1.0))
    assert "mine" in {item.label.value for item in interactive_scores(bare, "en-de").legend[0].items}


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "missing; `make study`"), ("{", "is not a notebook")],
)
def test_a_page_needs_an_executed_notebook(tmp_path, text, words, monkeypatch, capsys):
    folder = make_folder(tmp_path / "made")
    report.merge(folder)
    if text is not None:
        (folder / page.NOTEBOOK).write_text(text)
    with pytest.raises(InputError, match=words):
        report.write_page(folder)
    monkeypatch.setenv("SLT_FIGURES", str(tmp_path))
    assert main(["report", "made", "--html"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    shutil.copy(NOTEBOOK, folder / page.NOTEBOOK)
    notebook = nbformat.read(folder / page.NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    nbformat.write(notebook, folder / page.NOTEBOOK)
    with pytest.raises(InputError, match="has no outputs"):
        report.write_page(folder)


def test_a_page_is_not_made_of_an_older_notebook(study, tmp_path):
    """The plots of a page are drawn anew, so its tables must not be those of fewer runs."""
    folder = shutil.copytree(study[0].path, tmp_path / "made")
    text = (folder / page.NOTEBOOK).read_text(encoding="utf-8")
    (folder / page.NOTEBOOK).write_text(text.replace("### Claims of the paper", "### Older claims"), encoding="utf-8")
    with pytest.raises(InputError, match="shows other results than .*; execute the notebook 99_report again"):
        report.write_page(folder)


@pytest.fixture(scope="module")
def browser():
    drive = pytest.importorskip("playwright.sync_api", reason="no browser: the package playwright is not installed")
    place = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not place:
        pytest.skip("no browser: chromium is not installed")
    with drive.sync_playwright() as started:
        found = started.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield found
        found.close()


POINT = """name => {
  const view = [...Bokeh.index.roots][0], box = view.canvas_view.el.getBoundingClientRect();
  const one = view.model.renderers.find(r => r.glyph.type == "Scatter" && r.data_source.data.name[0] == name);
  const {x, y} = one.data_source.data;
  return {x: box.x + view.frame.x_scale.compute(x[0]), y: box.y + view.frame.y_scale.compute(y[0])};
}"""
SHOWN = """name => [...Bokeh.index.roots][0].model.renderers
  .filter(r => r.data_source.data.name && r.data_source.data.name[0] == name).map(r => r.visible)"""


@pytest.mark.parametrize("width", [1400, 390])
def test_in_a_browser(study, browser, width):
    """No error, no request, no sideways scrolling; a point tells its value, the legend hides a technique."""
    opened, faults = browser.new_page(viewport={"width": width, "height": 900}), []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else faults.append(asked.url))
    opened.goto(Path(study[1]).as_uri())
    opened.wait_for_function("window.Bokeh && [...Bokeh.index.roots].length")
    opened.locator(".interactive").scroll_into_view_if_needed()
    opened.wait_for_timeout(300)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert not opened.locator(".still img").is_visible()
    place = opened.evaluate(POINT, "MP")
    opened.mouse.move(place["x"], place["y"])
    opened.wait_for_selector(".bk-Tooltip >> text=95% interval", timeout=5000)
    opened.locator(".bk-label", has_text=re.compile("^MP$")).click()
    opened.wait_for_timeout(100)
    assert set(opened.evaluate(SHOWN, "MP")) == {False} and set(opened.evaluate(SHOWN, "dense")) == {True}
    opened.emulate_media(media="print")
    assert opened.locator(".still img").is_visible() and not opened.locator(".interactive").is_visible()
    opened.close()
    assert not faults
