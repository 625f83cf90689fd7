"""The executed report notebook as a page of its own: code folded, the main plot interactive, no network needed."""

import base64
import html
import io
import os
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.report.claims import claims_table
from slt_lib.report.data import load
from slt_lib.report.plots import STYLE

NOTEBOOK, PAGE = "report.ipynb", "report.html"
DPI, SCREEN = 144, 96  # pixels per inch of a stored picture, and as it is shown
COLOURS = 128  # of a stored picture: a third of the bytes of one with all
SKIP = "remove-cell"  # tag of cells that are of use in the notebook alone


def show(figure: Figure, alt: str, interactive: str = "") -> None:
    """Display a figure as a PNG with a text for those who cannot see it.

    `interactive`: a pair; the page then has an interactive plot of its scores in the place of the picture.
    """
    from IPython.display import display
    from PIL import Image

    drawn, out, text = io.BytesIO(), io.BytesIO(), f"[{alt}]"
    with mpl.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    about = {"alt": alt, "width": round(SCREEN * figure.get_figwidth())}
    about |= {"pair": interactive} if interactive else {}
    data = {"image/png": base64.b64encode(out.getvalue()).decode(), "text/plain": text}
    display(data, raw=True, metadata={"image/png": about})


def fold(title: str, markdown: str) -> str:
    """Markdown that a click on its title unfolds."""
    return f"<details>\n<summary>{title}</summary>\n\n{markdown.strip()}\n\n</details>\n"


def write_page(folder: str | os.PathLike) -> Path:
    """Write report.html from the executed notebook report.ipynb of a figures folder, and return its path.

    Raises InputError if the notebook is missing, unreadable, not executed, or shows other results than the folder.
    """
    from nbconvert import HTMLExporter

    path = Path(folder) / NOTEBOOK
    figures, notebook = load(folder), _executed(path)
    told = [
        output.get("data", {}).get("text/markdown", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    if claims_table(figures).markdown.strip() not in "\n".join(told):
        raise InputError(f"{path}: shows other results than {folder}; execute the notebook 99_report again")
    script, plots = _interactive(figures, notebook)
    cells = _worth_showing(notebook.cells)
    for cell in cells:
        for output in cell.get("outputs", []):
            _embed(output, plots)
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells = cells
    shown = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    body, _ = HTMLExporter(template_name="basic", **shown).from_notebook_node(notebook)
    titles = [title for cell in cells for title in re.findall(r"^## (.+)", cell.source, re.MULTILINE)
              if cell.cell_type == "markdown"]  # fmt: skip
    links = " ".join(f'<a href="#{title.replace(" ", "-")}">{html.escape(title)}</a>' for title in titles)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    parts = {"title": html.escape(figures.titled(figures.name)), "links": links, "body": body,
             "code": html.escape(code), "script": script}  # fmt: skip
    page = re.sub(r"\{\{(\w+)\}\}", lambda part: parts[part[1]], page)
    write_bytes(path.with_name(PAGE), page.encode())
    return path.with_name(PAGE)


def _executed(path: Path):
    """The notebook. `nbformat` takes a second to import, so it is imported only where a page is written."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; `make study` writes it, it is the executed notebook 99_report") from None
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise InputError(f"{path}: is not a notebook ({type(error).__name__}); execute 99_report again") from None
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise InputError(f"{path}: has no outputs; execute the notebook 99_report and put it there")
    return notebook


def _interactive(figures, notebook) -> tuple[str, dict[str, str]]:
    """The scripts of the page, Bokeh's own among them, and pair -> where its plot goes; both empty without pairs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    asked = [output.get("metadata", {}).get("image/png", {}).get("pair") for output in outputs]
    pairs = [pair for pair in dict.fromkeys(asked) if pair in figures.pairs and figures.begun(pair)]
    if not pairs:
        return "", {}
    from bokeh.embed import components
    from bokeh.resources import Resources

    from slt_lib.report.interactive import interactive_scores

    script, plots = components({pair: interactive_scores(figures, pair) for pair in pairs})
    return Resources(mode="inline", components=["bokeh"]).render_js() + script, plots


def _worth_showing(cells: list) -> list:
    """The cells without those tagged SKIP, and without a heading whose code has nothing to show."""
    sections = [[]]  # the first is what comes before the first heading
    for cell in (cell for cell in cells if SKIP not in cell.metadata.get("tags", [])):
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            sections.append([])
        sections[-1].append(cell)
    kept = [cell for cell in sections[0] if cell.get("outputs")][:1]
    for section in sections[1:]:
        kept += section if any(cell.get("outputs") for cell in section) else []
    return kept


def _embed(output, plots: dict[str, str]) -> None:
    """Replace a picture by its HTML: smaller, as lossless WebP, and hidden on the screen by an interactive plot."""
    from PIL import Image

    if "image/png" not in output.get("data", {}):
        return
    about, packed = output.metadata.get("image/png", {}), io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
    picture.save(packed, "webp", lossless=True)
    width = about.get("width", picture.width)
    source = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    image = f'<img src="{source}" width="{width}" alt="{html.escape(about.get("alt", ""))}">'
    if about.get("pair") in plots:
        image = f'<div class="interactive">{plots[about["pair"]]}</div><div class="still">{image}</div>'
    output.data = type(output)({"text/html": image})
