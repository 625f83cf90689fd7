"""The pages of the documentation: links, commands and numbers are right, and the README stays short."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slt_lib import masks
from slt_lib.__main__ import parser
from slt_lib.report import stability
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


def test_the_queue_of_the_main_study():
    commands = re.findall("-m slt_lib run multi30k ", (ROOT / "docs" / "study.md").read_text(encoding="utf-8"))
    assert len(commands) == 10


def test_the_readme_is_short_and_leads_to_the_line_that_computes_a_mask():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    where = text.partition("## Where things are")[2]
    assert "(slt_lib/masks.py) | `magnitude_mask`" in where and callable(masks.magnitude_mask)


def test_the_readme_compares_what_was_measured():
    rows = pd.read_csv(ROOT / "figures" / "multi30k" / "results.csv", keep_default_na=False)
    rows = rows[(rows.pair == "en-de") & (rows.test_set == "test_2016_flickr")]
    counts = rows[rows.variant == ""].groupby("seed").size()
    seeds = counts.index[counts == counts.max()]  # a seed that was not run whole does not count
    bleu = rows[rows.seed.isin(seeds)].groupby(["variant", "technique", "sparsity"])["bleu"].mean()
    paper = pd.read_csv(ROOT / "slt_lib" / "paper_tables.csv", comment="#").query("pair == 'en-de'")
    theirs = paper.set_index(["technique", "sparsity"])["bleu"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    chains = ["lt", "slt", "clt"]
    gain, gain_there = bleu[""][chains].max() - bleu["", "dense", 0], theirs[chains].max() - theirs["lt", 0]
    told = text.partition("What differs so far (")[2]
    assert told.startswith(f"seed{'s' * (len(seeds) > 1)} {' and '.join(map(str, seeds))}")
    assert f"up to {gain:.1f} BLEU above the dense model, in the paper's en-de table up to {gain_there:.1f}" in text
    assert f"At 90% LT has {bleu['', 'lt', 0.9]:.1f} BLEU and MP {bleu['', 'mp', 0.9]:.1f}" in text
    assert f"in the paper LT is {theirs['mp', 90] - theirs['lt', 90]:.1f} below MP" in text
    lt_mp, lt_mp_there = bleu["", "mp", 0.98] - bleu["", "lt", 0.98], theirs["mp", 98] - theirs["lt", 98]
    assert f"At 98% LT is {lt_mp:.1f} below MP, in the paper {lt_mp_there:.1f}." in text
    depths = [bleu["control=none" + f",depth={depth}" * (depth > 1), "slt", 0] for depth in range(1, 10)]
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85]  # level k is the k-th training after the dense one
    both = np.mean([bleu["", name, level] for name in ("slt", "clt") for level in levels]) - bleu["", "dense", 0]
    again = np.mean(depths) - bleu["", "dense", 0]
    told = f"SLT and CLT gain {both:.1f} BLEU on average, the dense model retrained as often with nothing pruned gains "
    assert f"{told}{again:.1f}" in text
    by_seed = rows.set_index(["variant", "technique", "sparsity", "seed"])["bleu"].sort_index()
    lost = [  # within the seeds that have the control
        (by_seed["", "slt", level] - by_seed[f"{at}control={control}", "slt", level]).mean()
        for at, level in (("at=0.9,", 0.9), ("", 0.5))
        for control in ("mask", "weights")
    ]
    told = "At 90% SLT loses {:.1f} BLEU with random masks and {:.1f} with fresh weights under its mask (`controls`, "
    told += "seed 1), "
    assert (told + "at 50% {:.1f} and {:.1f}").format(*lost) in text
    barriers = stability.barriers(ROOT / "figures" / "multi30k", "en-de").groupby("start").barrier.mean()
    assert f"a barrier of {barriers['lt']:.2f} nats; dense theta_0: {barriers['theta_0']:.2f}" in text
    final = bleu["checkpoint=final"]
    changes = (final - bleu[""].reindex(final.index)).abs().mean()
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert f"the mean absolute difference is {changes:.1f} BLEU" in page
    assert final["lt", 0.9] > final["mp", 0.9]


def test_what_generated_sentences_show():
    folder = ROOT / "figures" / "grammar-large"
    page = " ".join((ROOT / "docs" / "dissect.md").read_text(encoding="utf-8").split())
    bleu = pd.read_csv(folder / "results.csv", keep_default_na=False).query("variant == ''")
    bleu = bleu.groupby(["technique", "sparsity"])["bleu"].mean()
    assert "on en-de, test, means over seeds 1, 2 (generated sentences):" in (folder / "summary.md").read_text()
    told = "the dense model has {:.1f}, MP {:.1f} and SLT {:.1f}."
    assert told.format(bleu["dense", 0], bleu["mp", 0.9], bleu["slt", 0.9]) in page
    rows = pd.read_csv(folder / "dissect_probes.csv", dtype={"layer": str}).query("layer in ['1', '2']")
    rows["accuracy"] = 100 * rows["form_accuracy"].fillna(rows["accuracy"])
    means = rows.pivot_table(index="task", columns=["technique", "sparsity"], values="accuracy")
    nouns = means.loc["noun class"]
    told = "is {:.1f}% in the dense model, {:.1f}% (MP) and {:.1f}% (SLT) at 90% sparsity, {:.1f}% and {:.1f}% at 98% "
    told += "(the most frequent class: {:.1f}%)"
    cells = ("dense", 0), ("mp", 0.9), ("slt", 0.9), ("mp", 0.98), ("slt", 0.98)
    majority = 100 * rows[rows.task == "noun class"].form_majority.mean()
    assert told.format(*(nouns[cell] for cell in cells), majority) in page
    assert f"the dense model retrained as often, with nothing pruned, has {nouns['again', 0.98]:.1f}%" in page
    lost = means[[("mp", 0.98), ("slt", 0.98)]].rsub(means["dense", 0.0], axis=0)
    assert (lost.drop("noun class").max() < lost.loc["noun class"] / 2).all()
    assert f"with an accuracy of {means.loc['negation', ('untrained', 0)]:.1f}%" in page
    assert rows[rows.group == "meaning"].task.unique().tolist() == ["negation", "noun class"]


def test_the_sizes_and_speeds_in_the_texts_are_those_measured():
    """The README's sentence and the table of docs/speed.md are written by hand; footprint.csv is measured."""
    rows = pd.read_csv(ROOT / "figures" / "multi30k" / "footprint.csv")
    widths = {"multi30k": 192} | {f"multi30k-width{width}": width for width in (48, 80, 128)}
    page, shown = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), {}
    for row in rows[rows.sparsity.isin([0, 0.8, 0.9])].itertuples():
        name = (
            f"dense, width {widths[row.study]}"
            if row.technique == "dense"
            else f"{row.technique.upper()} at {row.sparsity:.0%}"
        )
        shown[name] = row
        line = f"| {name} | {row.bleu:.1f} | {row.bytes / 2**20:.1f} | {row.beam4_batch:.0f} |"
        assert line in page, line
    names = "SLT at 90%", "SLT at 80%", "dense, width 48", "dense, width 128"
    sparse, denser, small, wide = (shown[name] for name in names)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{sparse.bytes / 2**20:.1f} MiB and {sparse.bleu:.1f} BLEU" in text
    assert f"of that size has {small.bleu:.1f} BLEU" in text
    wider = f"of width 128 has {wide.bleu:.1f}, at four times the size ({wide.bytes / 2**20:.1f} MiB)"
    assert wider in text and round(wide.bytes / sparse.bytes) == 4
    assert f"at 80% has {denser.bleu:.1f} ({denser.bytes / 2**20:.1f} MiB)" in text
    assert wide.beam4_batch < sparse.beam4_batch and abs(wide.beam4_batch / denser.beam4_batch - 1) < 0.1
    assert abs(small.bytes / sparse.bytes - 1) < 0.1


def test_the_ratios_of_the_speed_page_are_those_measured():
    rows = pd.read_csv(ROOT / "benchmarks" / "results.csv")
    rows = rows[rows.setting.str.startswith("size of multi30k-large; beam 4, 512") & (rows.measure == "inference")]
    speed = rows.set_index("system")["value"]
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    names = {"CTranslate2 in fp32": "CTranslate2 float32", "CTranslate2 in int8": "CTranslate2 int8"}
    names |= {
        "our dense decoding in bf16, with AMX": "dense bf16",
        "decoding with the training model": "training model",
    }
    for name, system in (names | {"our dense decoding in fp32": "ours"}).items():
        ratios = speed[["ours", "90% sparse", "95% sparse", "98% sparse"]] / speed[system]
        line = f"| {name} | " + " | ".join("1" if ratio == 1 else f"{ratio:.2f}" for ratio in ratios) + " |"
        assert line in page, line


@pytest.mark.parametrize("folder", ["multi30k-en-de-slt-90", "multi30k-en-de-lt-90-ticket"])
def test_what_is_published_is_a_run_of_the_results(folder):
    card = (ROOT / "models" / folder / "README.md").read_text(encoding="utf-8")
    rows = pd.read_csv(ROOT / "figures" / "multi30k" / "results.csv")
    own = rows[[run in card for run in rows.run]]
    assert len(own) == 3 and set(own.sparsity) == {0.9}
    for row in own.itertuples():
        assert f"| {row.test_set} | {row.bleu:.1f} | {row.ter:.1f} |" in card
