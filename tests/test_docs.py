"""The pages of the documentation: their links lead somewhere, their commands are valid, and the README stays short."""

import re
import shlex
from pathlib import Path

import pytest

from slt_lib import masks
from slt_lib.__main__ import parser
from slt_lib.techniques import comparisons

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request):
    return request.param


def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert links and not missing


def test_commands_are_valid(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"-m slt_lib ([a-z]+ [^`\n]+)", text)
    for command in commands:
        options = parser().parse_args(shlex.split(command))
        assert set(getattr(options, "comparisons", ())) <= comparisons([0.5]).keys(), command


def test_the_queue_of_the_converged_study():
    commands = re.findall("-m slt_lib run multi30k ", (ROOT / "docs" / "study.md").read_text(encoding="utf-8"))
    assert len(commands) == 9


def test_the_readme_is_short_and_leads_to_the_line_that_computes_a_mask():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    where = text.partition("## Where things are")[2]
    assert "(slt_lib/masks.py) | `magnitude_mask`" in where and callable(masks.magnitude_mask)
