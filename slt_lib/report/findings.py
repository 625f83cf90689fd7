"""The findings of related papers and their verdicts on a study, from the files of notebooks 10 and 11 alone.

Movva and Zhao (2020), "Dissecting lottery ticket Transformers"; Prasanna, Rogers and Rumshisky (2020), "When BERT plays
the lottery, all tickets are winning"; Voita et al. (2019), "Analyzing multi-head self-attention"; Michel, Levy and
Neubig (2019), "Are sixteen heads really better than one?".
"""

import itertools
import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from slt_lib.report import dissect, subnetworks
from slt_lib.report.data import label, percent, read_study
from slt_lib.report.judging import NO_ROWS, UNDECIDED, WITHHELD, Claim, Verdict, decide
from slt_lib.report.statistics import FREEDOM, Contrast, pooled
from slt_lib.report.tables import markdown_rows

MOVVA, PRASANNA = "Movva and Zhao (2020)", "Prasanna et al. (2020)"
VOITA, MICHEL = "Voita et al. (2019)", "after Michel et al. (2019)"
OURS = "not in the paper"
# name -> statement, unit and source
INSIDE = {
    "meaning_first": ("meaning degrades before the other groups of probes", "points", MOVVA),
    "higher_diverge": ("the highest encoder layer diverges more than the first", "CKA", MOVVA),
    "higher_diverge_decoder": ("the highest decoder layer diverges more than the first", "CKA", OURS),
    "higher_diverge_again": ("the gap between encoder layers exceeds that of retraining alone", "CKA", OURS),
    "early_encode": ("the first layer encodes more than in the dense model", "points", MOVVA),
    "early_encode_again": ("the first layer encodes more than after retraining alone", "points", OURS),
    "early_encode_most": ("the first layer gains more than the highest", "points", OURS),
    "attention_stays": ("attention changes no more than by other SGD noise", "r", f"after {MOVVA}"),
    "attention_stays_again": ("attention changes no more than by retraining alone", "r", OURS),
    "neurons_stay_again": ("neurons change their roles no more than by retraining alone", "points", OURS),
}
KEYS, ENDS = ["technique", "sparsity", "seed"], ["0", "norm"]  # ENDS: sites that are no layers
EACH_LEVEL = ("slt", "clt")  # their weights go through a training per level, as those of the control "again" do
# start of a name in subnet_contrasts.csv -> what is compared there
STATEMENTS = {
    "good random": "a good subnetwork beats a random one",
    "random bad": "a random subnetwork beats a bad one",
    "bad dense": "a bad subnetwork is worse than the whole model",
}
SUBNETWORKS = {
    "cross_last": ("cross-attention is removed after both other kinds", "points", VOITA),
    "last_cross": ("a head of the last cross-attention costs more BLEU than another head", "BLEU", MICHEL),
} | {
    f"{pruning} {trained} {two}": (f"{pruning}, {how}: {text}", "BLEU", PRASANNA)
    for two, text in STATEMENTS.items()
    for trained, how in (("pruned", "as pruned"), ("lt", "from theta_0"), ("slt", "from theta_t"))
    for pruning in ("structured", "unstructured")
    if (two, trained) != ("bad dense", "pruned")
}
RULE = (
    "Each finding is judged like a claim of the paper (claims.md), on one contrast per technique and level, the mean "
    "over seeds: do more than half of the contrasts lie at or above 0? The spread between seeds is pooled over "
    "techniques and levels; what all contrasts of a seed share, such as its dense model, counts once. A contrast of "
    "one seed supports neither verdict. All seeds read the same sentences, whose choice the intervals do not cover. "
    "Contrasts: (1) loss of probing accuracy in points, of the group meaning minus the mean of the other groups, over "
    "the layers of the encoder; (2) CKA with the dense model, first minus last encoder layer; (3) the same in the "
    "decoder, which Movva and Zhao left out; (4) the contrast of 2 minus that of the dense run retrained as often; (5) "
    "probing accuracy of the first layer, sparse minus dense, mean over tasks; (6) the contrast of 5 minus that of the "
    "retrained run; (7) the contrast of 5 minus that of the last layer; (8) Pearson correlation of a head with the "
    "same head of the dense model, minus that of the copy with other SGD noise, which Movva and Zhao do not have; (9) "
    "that correlation minus that of the retrained run; (10) the share of neurons whose most correlated partner in the "
    "dense model has the same index, minus that of the retrained run. 4, 6, 9 and 10 are for SLT and CLT alone, whose "
    "weights go through a training per level. The copy with other noise starts from theta_0, so its heads are as far "
    "from the dense model's as those of another seed; 9 is the stricter test. Accuracies are those on unseen word "
    "forms where a task has such a split. Probing tasks on which the dense model is no better than the most frequent "
    "label are left out. Captions have no labels for the group meaning; the study grammar-large has."
)
HEADS_RULE = (
    "Each finding is judged like a claim of the paper (claims.md), on the mean over seeds. Scores vary over the lines "
    "of the test set and between seeds; the spread between seeds is pooled over the retrained models, and for models "
    "as pruned over those of one kind of pruning. A difference between models that no longer translate says little "
    "(subnet_scores.csv). For Voita et al., where heads alone are removed: the mean share of all heads that are gone "
    "once a head of cross-attention is removed, minus that of self-attention in the encoder, and in the decoder. For "
    "Michel et al.: BLEU lost without one head of the last cross-attention, minus that of other heads. Both vary over "
    "the heads of all seeds (Welch's t). Contrasts of a seed with the same model, and heads of one model, are not "
    "independent, so the true degrees of freedom may be fewer."
)


def effects(folder: str | os.PathLike, pair: str) -> dict[str, pd.Series]:
    """Finding -> effect per technique, sparsity and seed; a finding without rows is left out."""
    found = _of_probes(dissect.probes(folder, pair))
    frame = dissect.similarity(folder, pair)
    layers = frame[~frame.layer.isin(ENDS)]
    for side, name in (("encoder", "higher_diverge"), ("decoder", "higher_diverge_decoder")):
        table = layers[layers.side == side].pivot_table(index=KEYS, columns="layer", values="cka")
        if len(table.columns) > 1:
            found[name] = table["1"] - table[max(table, key=int)]
    found["neurons_stay_again"] = _less_again(100 * layers.groupby(KEYS).same_index.mean())
    frame = dissect.heads(folder, pair)
    alike = frame.groupby(KEYS).correlation.mean()
    if (frame.technique == "noise").any():
        noise = alike.xs("noise", level="technique").droplevel("sparsity")
        found["attention_stays"] = alike - noise.reindex(alike.index, level="seed")
    for name in ("higher_diverge", "early_encode"):
        if name in found:
            found[f"{name}_again"] = _less_again(found[name])
    found["attention_stays_again"] = _less_again(alike)
    others = [*dissect.CONTROLS, "dense"]
    own = {name: effect.dropna().drop(others, level=0, errors="ignore") for name, effect in found.items()}
    return {name: effect for name, effect in own.items() if len(effect)}


def _less_again(effect: pd.Series) -> pd.Series:
    """The effect of SLT and CLT minus that of the dense run retrained as often; empty without such runs."""
    names = effect.index.get_level_values("technique")
    own, again = effect[names.isin(EACH_LEVEL)], effect[names == "again"].droplevel("technique")
    return own - again.reindex(own.index.droplevel("technique")).to_numpy()


def _of_probes(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The effects on the accuracy of probes."""
    inner, found = _judged_probes(frame), {}
    if inner.empty:
        return found

    def change(part: pd.DataFrame) -> pd.DataFrame:
        """Accuracy in points per model (rows) and task (columns), less that of the dense model of the seed."""
        table = 100 * part.pivot_table(index=KEYS, columns=["group", "task"], values="accuracy")
        return table - table.xs("dense", level="technique").droplevel("sparsity").reindex(table.index, level="seed")

    groups = change(inner).T.groupby("group").mean().T
    if "meaning" in groups and len(groups.columns) > 1:
        found["meaning_first"] = groups.drop(columns="meaning").mean(axis=1) - groups["meaning"]
    first, last = (change(inner[inner.layer == layer]).mean(axis=1) for layer in ("1", max(inner.layer, key=int)))
    return found | {"early_encode": first} | ({"early_encode_most": first - last} if inner.layer.nunique() > 1 else {})


def _judged_probes(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers and tasks that findings are judged on; accuracies on unseen word forms where measured."""
    values = {name: frame[f"form_{name}"].fillna(frame[name]) for name in ("accuracy", "majority")}
    inner = frame.assign(**values)[~frame.layer.isin(ENDS)]
    means = inner[inner.technique == "dense"].groupby("task")[["accuracy", "majority"]].mean()
    return inner[inner.task.isin(means.index[means.accuracy > means.majority])]


def inside(folder: str | os.PathLike, pair: str) -> dict[str, list[Contrast]]:
    """Finding of INSIDE -> its contrasts, one per technique and level."""
    found = {}
    for name, effect in effects(folder, pair).items():
        groups = effect.groupby(["technique", "sparsity"])
        spread, _ = pooled([values.tolist() for _, values in groups])
        freedom, found[name] = _freedom(effect), []
        for (technique, level), values in groups:
            about, error = (f"{label(technique)} {percent(level)}%", level), spread / len(values) ** 0.5
            found[name].append(Contrast(*about, float(values.mean()), error, freedom or np.inf, len(values) > 1))
    return found


def _freedom(effect: pd.Series) -> float:
    """Degrees of freedom of the spread between seeds, pooled over techniques and levels; 0 with one seed.

    Contrasts of a seed share its dense model and its controls. What shifts them all alike counts once per seed
    (Satterthwaite's approximation with the sums of squares of seeds and of the rest).
    """
    groups = effect.groupby(["technique", "sparsity"])
    rest = (effect - groups.transform("mean"))[groups.transform("size") > 1]
    alike = rest.groupby("seed").agg(["mean", "size"])
    total, of_seeds = float((rest**2).sum()), float((alike["size"] * alike["mean"] ** 2).sum())
    freedom, seeds = len(rest) - len(rest.groupby(["technique", "sparsity"])), len(alike) - 1
    if freedom <= max(seeds, 0) or not total:
        return freedom
    return total**2 / (of_seeds**2 / seeds + max(0.0, total - of_seeds) ** 2 / (freedom - seeds))


def of_subnetworks(folder: str | os.PathLike, pair: str) -> dict[str, list[Contrast]]:
    """Finding of SUBNETWORKS -> its contrasts: one, or two of cross-attention against the other kinds."""
    rows = subnetworks.frame(folder, "contrasts", pair)
    rows = rows.assign(finding=rows.pruning + " " + rows.trained + " " + rows.better + " " + rows.worse)
    rows.loc[rows.worse == "dense", "difference"] *= -1
    # other contrasts follow from these and would count the same differences twice
    rows = rows[rows.finding.isin(SUBNETWORKS)]
    cells = subnetworks.estimates(rows, "difference", ["finding"], subnetworks.alike(rows))
    found = {
        name: [Contrast("", 0.0, cell["mean"], cell.deviation, cell.degrees, cell.freedom >= FREEDOM)]
        for name, cell in cells.iterrows()
    }
    return {name: made for name, made in (_of_heads(folder, pair) | found).items() if made}


def _of_heads(folder: str | os.PathLike, pair: str) -> dict[str, list[Contrast]]:
    """The findings on removed heads: when those of cross-attention go, and what each head of the last one costs."""
    rows, times = subnetworks.frame(folder, "pruning", pair).query("kind == 'heads'"), {}
    for _, steps in rows.sort_values("step").groupby("seed"):
        left = steps[[*subnetworks.COLOURS]]
        gone, total = -left.diff().iloc[1:].astype(int), left.iloc[0].sum()
        at = 100 * (1 - left.iloc[1:].sum(axis=1) / total).to_numpy()
        for kind in left:
            times.setdefault(kind, []).extend([*np.repeat(at, gone[kind]), *[100.0] * int(left[kind].iloc[-1])])
    others, seeds = ("encoder", "decoder") if times else (), rows.seed.nunique()
    found = {"cross_last": [_welch(f"against {kind}", times["cross"], times[kind], seeds) for kind in others]}
    rows = subnetworks.frame(folder, "heads", pair)
    if len(rows):
        lost, last = rows.bleu - rows["without"], (rows.kind == "cross") & (rows.layer == rows.layer.max())
        found["last_cross"] = [_welch("", lost[last], lost[~last], rows.seed.nunique())]
    return found


def _welch(what: str, one: Sequence[float], other: Sequence[float], seeds: int) -> Contrast:
    """The difference of two means as a contrast, with Welch's error and degrees of freedom."""
    error = sum(np.var(part, ddof=1) / len(part) for part in (one, other)) ** 0.5
    freedom = ttest_ind(one, other, equal_var=False).df
    return Contrast(what, 0.0, float(np.mean(one) - np.mean(other)), error, float(freedom), seeds > 1)


# start of the file names -> the findings, their relation, their contrasts, and how they are judged
KINDS = {
    "dissect": (INSIDE, "above on most", inside, RULE),
    "subnet": (SUBNETWORKS, "above", of_subnetworks, HEADS_RULE),
}


def judged(folder: str | os.PathLike, pair: str, kind: str = "dissect") -> pd.DataFrame:
    """One row per finding of a kind: verdict, effect with its interval, the decisive contrast, and the reason.

    In a rehearsal every verdict is withheld. Raises InputError if study.json is missing or malformed.
    """
    findings, relation, contrasts, _ = KINDS[kind]
    rehearsal, known, lines = read_study(folder)["rehearsal"], contrasts(folder, pair), []
    for name, (statement, unit, source) in findings.items():
        about = {"finding": name, "statement": statement, "source": source, "pair": pair, "unit": unit}
        if rehearsal:
            verdict = Verdict(WITHHELD, "rehearsal: no evidence")
        elif name in known:
            verdict = decide(Claim(name, statement, source, "any", relation), known[name])
        else:
            verdict = Verdict(UNDECIDED, NO_ROWS)
        lines.append(about | vars(verdict))
    return pd.DataFrame(lines).drop(columns="contrasts")


def markdown(folder: str | os.PathLike, pair: str, kind: str = "dissect") -> str:
    """The findings of a kind as a Markdown table; empty if nothing of the pair was looked into."""
    _, _, contrasts, _ = KINDS[kind]
    if not contrasts(folder, pair):
        return ""
    head, body = "No.|Finding|Source|Verdict|Effect|95% interval|At|Agree|Reason".split("|"), []
    rows = judged(folder, pair, kind)
    rows.index += 1
    absent = rows.index[rows["reason"] == NO_ROWS]
    for row in rows.drop(absent).itertuples():
        known = not np.isnan(row.effect)
        effect = f"{row.effect:+.3g} {row.unit}" if known else ""
        interval = f"{row.low:+.3g} to {row.high:+.3g}" if known and not np.isnan(row.low) else ""
        judgement = [row.verdict, effect, interval, row.at, row.supported, row.reason]
        body.append([str(row.Index), row.statement, row.source, *judgement])
    runs = [list(run) for _, run in itertools.groupby(absent, key=lambda row: row - absent.get_loc(row))]
    listed = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    without = f"\nFindings without results: {listed} ({kind}_findings_{pair}.csv lists their statements).\n"
    table = markdown_rows(head, body) + (without if listed else "")
    groups = _judged_probes(dissect.probes(folder, pair)).groupby("group", sort=False).task if kind == "dissect" else []
    tasks = "; ".join(f"{group}: {', '.join(part.unique())}" for group, part in groups)
    return table + (f"\nProbing tasks that count: {tasks}.\n" if tasks else "")


def render(folder: str | os.PathLike, pairs: Iterable[str]) -> dict[str, str]:
    """File name -> content of the verdicts and translations for which the folder has data."""
    texts = {}
    for pair in pairs:
        for kind, (*_, rule) in KINDS.items():
            if found := markdown(folder, pair, kind):
                name = f"{kind}_findings_{pair}"
                texts[f"{name}.md"] = f"{found}\n{rule}\n"
                texts[f"{name}.csv"] = judged(folder, pair, kind).to_csv(index=False, lineterminator="\n")
        if shown := dissect.translations(folder, pair):
            texts[f"dissect_translations_{pair}.md"] = shown
    return texts
