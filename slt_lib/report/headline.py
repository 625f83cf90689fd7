"""A study in a few sentences: what ran, its dense score, the claims it agrees with and contradicts, what is missing."""

from collections.abc import Iterable

import pandas as pd

from slt_lib.report.claims import Claims, named
from slt_lib.report.data import Figures, has_own, label, read_study, trainings
from slt_lib.report.judging import CONTROL, FAILS, HOLDS, NO_ROWS, UNDECIDED
from slt_lib.report.paper import paper_figures


def headline(figures: Figures, claims: Claims, pairs: Iterable[str] = ()) -> list[str]:
    """The sentences, about `pairs` of the study; by default about all. Claims are named for the first pair."""
    pairs = list(pairs) or list(figures.pairs)
    run = [pair for pair in pairs if (figures.results["pair"] == pair).any()]
    judged = claims.frame[claims.frame["pair"].isin(run) & (claims.frame["source"] != CONTROL)]
    verdicts = [_verdicts(judged, HOLDS), _verdicts(judged, FAILS)]
    if figures.rehearsal:
        count = judged.claim.nunique()
        verdicts = [f"A rehearsal decides none of the paper's {count} claims: every verdict is withheld."]
    return [_ran(figures, run), _dense(figures, run), *verdicts, _missing(figures, judged, pairs, run)]


def joined(parts: Iterable[object]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = map(str, parts)
    return f"{', '.join(first)} and {last}" if first else last


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _ran(figures: Figures, run: list[str]) -> str:
    if not run:
        return f"Nothing of {figures.name} was run yet."
    rows = figures.results[figures.results["pair"].isin(run)]
    seeds = {int(seed): len(part) for seed, part in rows[rows["variant"] == ""].groupby("seed")}
    most = max(seeds.values(), default=0)
    whole, part = ([seed for seed, count in seeds.items() if (count < most) == less] for less in (False, True))
    named = [f"seed{'s' * (len(seeds) > 1)} {joined(seeds)}" for seeds in (whole, part) if seeds]
    which = " and, in part, ".join(named)
    levels = {cell.sparsity for pair in run for name in figures.begun(pair) for cell in figures.own_cells(pair, name)}
    begun = dict.fromkeys(name for pair in run for name in figures.begun(pair))
    known = dict.fromkeys(name for pair in run for name in figures.techniques(pair))
    names = f" ({joined(map(label, begun))})" if 0 < len(begun) < len(known) else ""
    return (
        f"The study {figures.name} has {_many(len(trainings(rows)), 'scored training')}: {joined(run)}, "
        f"{which}, {len(begun)} of {len(known)} techniques{names} at up to "
        f"{len(levels)} of {len({*figures.levels, *levels})} levels."
    )


def _dense(figures: Figures, run: list[str]) -> str:
    told, paper = [], paper_figures()
    for pair in run:
        if cell := figures.control(pair, 0):
            theirs = f"{paper.cell(pair, 'dense', 0).mean('bleu'):.1f}" if pair in paper.pairs else ""
            told.append(
                f"{cell.mean('bleu'):.1f} BLEU on {pair}{theirs and f' (paper: {theirs}, a larger model on WMT14)'}"
            )
    return f"The dense model scores {joined(told)}." if told else "The dense model was not scored yet."


def _verdicts(judged: pd.DataFrame, verdict: str) -> str:
    """The claims with this verdict; after those that fail, the undecided ones with the contrasts that agree."""
    if judged.empty:
        return "No claim was tested yet."
    does, told = {HOLDS: "agrees with", FAILS: "contradicts"}[verdict], []
    for pair, rows in judged.groupby("pair", sort=False):
        decided = rows[rows["verdict"] == verdict]
        undecided = rows[(rows["verdict"] == UNDECIDED) & (rows["supported"] != "")]
        text = f"{'on' if told else 'On'} {pair} the study {does} {len(decided)} of the paper's {len(rows)} claims"
        text += "" if told else _quoted(map(named, decided.itertuples()))
        if verdict == FAILS and len(undecided):
            agree = [f"{named(row)}: {row.supported}" for row in undecided.itertuples()]
            agree[0] += " contrasts agree"
            text += f", and {len(undecided)} more {'are' if len(undecided) > 1 else 'is'} undecided"
            text += "" if told else _quoted(agree)
        told.append(text)
    return f"{'; '.join(told)}."


def _quoted(texts: Iterable[str]) -> str:
    shown = ", ".join(texts)
    return f" ({shown})" if shown else ""


def _missing(figures: Figures, judged: pd.DataFrame, pairs: list[str], run: list[str]) -> str:
    failed = sum(len(figures.failures(pair)) for pair in run)
    parts = [f"runs failed in {_many(failed, 'cell')}"] if failed else []
    if figures.rehearsal:
        return f"{'; '.join(['This is a rehearsal, so its scores are no evidence', *parts])}."
    seeds, gaps = len(read_study(figures.path)["seeds"]), []
    if idle := [pair for pair in pairs if pair not in run]:
        gaps.append(f"all of {joined(idle)}")
    for pair in run:
        planned = [(name, level) for name in figures.pairs[pair] for level in figures.levels if has_own(name, level)]
        cells = [figures.cell(pair, *at) for at in (("dense", 0.0), *planned)]
        gaps += [f"{absent} of the {len(cells)} cells of {pair}"] if (absent := cells.count(None)) else []
        fewer = sum(len(cell.rows) + len(cell.failures) < seeds for cell in cells if cell)
        gaps += [f"a seed in {_many(fewer, 'cell')} of {pair}"] if fewer else []
        controls = [figures.control(pair, depth) for depth in range(1, len(figures.levels) + 1)]
        fewer = sum(len(cell.rows) < seeds for cell in controls if cell)
        gaps += [f"a seed in {_many(fewer, 'run')} of `again` on {pair}"] if fewer else []
    if lacking := int((judged["reason"] == NO_ROWS).sum()):
        gaps.append(f"all runs for {_many(lacking, 'claim')}")
    parts.insert(0, f"Still missing: {joined(gaps)}" if gaps else "Nothing is missing")
    return f"{'; '.join(parts)}."
