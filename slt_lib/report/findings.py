"""The findings of Movva and Zhao (2020) and their verdicts on a study, from the files dissect_*.csv alone."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slt_lib.report import dissect
from slt_lib.report.data import label, percent, read_study
from slt_lib.report.judging import NO_ROWS, UNDECIDED, WITHHELD, Claim, Verdict, decide
from slt_lib.report.statistics import Contrast, pooled


@dataclass(frozen=True)
class Finding(Claim):
    """A finding of Movva and Zhao (2020), judged as the claims of the paper are."""

    of: str = ""  # the unit of its effects

    @property
    def unit(self) -> str:
        return self.of

    def numbers(self, one: Contrast) -> dict[str, float]:
        return dict(
            zip(("effect", "low", "high", "detectable"), (one.effect, *one.bounds(), one.detectable), strict=True)
        )


def _finding(name: str, statement: str, unit: str) -> Finding:
    return Finding(name, statement, "Movva and Zhao (2020)", "any", "above on most", of=unit)


FINDINGS = {
    "meaning_first": _finding("meaning_first", "meaning degrades before the other groups of probes", "points"),
    "higher_diverge": _finding("higher_diverge", "the highest layer diverges more than the first", "CKA"),
    "higher_diverge_again": _finding("higher_diverge_again", "and more so than by retraining alone", "CKA"),
    "early_encode": _finding("early_encode", "the first layer encodes more than in the dense model", "points"),
    "attention_stays": _finding("attention_stays", "attention changes no more than by other SGD noise", "r"),
}
RULE = (
    "Each finding is judged like a claim of the paper (claims.md), on one contrast per technique and level, the mean "
    "over seeds. It holds if more than half of the contrasts are above 0. The spread between seeds is pooled over "
    "techniques and levels. Contrasts: (1) loss of accuracy in points, meaning less the mean of the others, over "
    "the layers of the encoder; (2) CKA with the dense model, first less last encoder layer; (3) the same, less that "
    "of the dense run retrained as often; (4) accuracy of the first layer, sparse less dense, mean over tasks; (5) "
    "Pearson correlation of a head with the same head of the dense model, less that of the copy with other SGD noise."
)


def effects(folder: str | os.PathLike, pair: str) -> dict[str, pd.Series]:
    """Finding -> effect per technique, sparsity and seed; a finding without rows is left out."""
    keys, found = ["technique", "sparsity", "seed"], {}
    frame = dissect.probes(folder, pair)
    inner = frame[~frame.layer.isin(["0", "norm"])]
    if len(inner):
        # accuracy per model (rows) and task (columns), less that of the dense model of the seed
        def change(part: pd.DataFrame) -> pd.DataFrame:
            table = 100 * part.pivot_table(index=keys, columns=["group", "task"], values="accuracy")
            return table - table.xs("dense", level="technique").droplevel("sparsity").reindex(table.index, level="seed")

        groups = change(inner).T.groupby("group").mean().T
        if "meaning" in groups and len(groups.columns) > 1:
            found["meaning_first"] = groups.drop(columns="meaning").mean(axis=1) - groups["meaning"]
        found["early_encode"] = change(inner[inner.layer == "1"]).mean(axis=1)
    frame = dissect.similarity(folder, pair)
    frame = frame[(frame.side == "encoder") & ~frame.layer.isin(["0", "norm"])]
    if frame.layer.nunique() > 1:
        table = frame.pivot_table(index=keys, columns="layer", values="cka")
        found["higher_diverge"] = table["1"] - table[max(table, key=int)]
        if (frame.technique == "again").any():
            again = found["higher_diverge"].xs("again", level="technique")
            found["higher_diverge_again"] = (
                found["higher_diverge"] - again.reindex(table.index.droplevel("technique")).to_numpy()
            )
    frame = dissect.heads(folder, pair)
    if (frame.technique == "noise").any():
        table = frame.groupby(keys).correlation.mean()
        noise = table.xs("noise", level="technique").droplevel("sparsity")
        found["attention_stays"] = table - noise.reindex(table.index, level="seed")
    own = {name: effect.dropna() for name, effect in found.items()}
    own = {
        name: effect[~effect.index.get_level_values(0).isin([*dissect.CONTROLS, "dense"])]
        for name, effect in own.items()
    }
    return {name: effect for name, effect in own.items() if len(effect)}


def judged(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """One row per finding: verdict, effect with its interval, the contrast on which it turns, and the reason.

    In a rehearsal every verdict is withheld. Raises InputError if study.json is missing or malformed.
    """
    rehearsal, known, lines = read_study(folder)["rehearsal"], effects(folder, pair), []
    for name, finding in FINDINGS.items():
        about = {"finding": name, "statement": finding.statement, "pair": pair, "unit": finding.unit}
        if rehearsal:
            verdict = Verdict(WITHHELD, "rehearsal: no evidence")
        elif name not in known:
            verdict = Verdict(UNDECIDED, NO_ROWS)
        else:
            groups = known[name].groupby(["technique", "sparsity"])
            spread, freedom = pooled([values.tolist() for _, values in groups])
            verdict = decide(
                finding,
                [
                    Contrast(
                        f"{label(technique)} {percent(level)}%",
                        level,
                        float(values.mean()),
                        spread / len(values) ** 0.5,
                        freedom or np.inf,
                        freedom > 0,
                    )
                    for (technique, level), values in groups
                ],
            )
        lines.append(about | {key: value for key, value in vars(verdict).items() if key != "contrasts"})
    return pd.DataFrame(lines)


def markdown(folder: str | os.PathLike, pair: str) -> str:
    """The findings as a Markdown table; empty if nothing of the pair was looked into."""
    if dissect.similarity(folder, pair).empty:
        return ""
    header = ["Finding of Movva and Zhao (2020)", "Verdict", "Effect", "95% interval", "At", "Agree", "Reason"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in judged(folder, pair).itertuples():
        known = not np.isnan(row.effect)
        effect = f"{row.effect:+.3g} {row.unit}" if known else ""
        interval = f"{row.low:+.3g} to {row.high:+.3g}" if known and not np.isnan(row.low) else ""
        cells = row.statement, row.verdict, effect, interval, row.at, row.supported, row.reason
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render(folder: str | os.PathLike, pairs: Iterable[str]) -> dict[str, str]:
    """File name -> content of the verdicts and translations for which the folder has data."""
    texts = {}
    for pair in pairs:
        if found := markdown(folder, pair):
            texts[f"dissect_findings_{pair}.md"] = f"{found}\n{RULE}\n"
            texts[f"dissect_findings_{pair}.csv"] = judged(folder, pair).to_csv(index=False, lineterminator="\n")
        if shown := dissect.translations(folder, pair):
            texts[f"dissect_translations_{pair}.md"] = shown
    return texts
