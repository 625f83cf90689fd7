"""The tables of notebook 11: from runs to the CSV files that `report.subnetworks` shows.

Each function replaces the rows of its pair and seeds. Translations are scored once and kept in the store.
"""

import importlib.metadata
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from slt_lib import masks, parts
from slt_lib.analysis import overlap, patterns
from slt_lib.evaluation import scoring
from slt_lib.report.statistics import line_counts
from slt_lib.report.subnetworks import FILES
from slt_lib.study import dissect, subnetworks
from slt_lib.study.importance import measured
from slt_lib.study.rows import remembered, replace
from slt_lib.study.runs import Run
from slt_lib.study.scores import SCORE_VERSION, scores, translate_with
from slt_lib.study.study import Chain, Study
from slt_lib.train.checkpoint import weights_hash
from slt_lib.transformer import prunable

BLEU = [f"{kind}{n}" for kind in "mt" for n in range(1, 5)] + ["sys_len", "ref_len"]
Statistics = Mapping[str, Sequence[int]]
# subnetwork -> what it is compared with
WORSE = {"good": ["random", "bad", "dense"], "random": ["bad", "dense"], "bad": ["dense"], "dense": []}
SENTENCES = 256  # of dev, whose attention is looked at


def write(study: Study, name: str, rows: list[list]) -> None:
    """Add rows to a file of `FILES`; its rows of the same pair and seeds are replaced."""
    replace(study, *FILES[name], rows, same=2)


def short(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}"


# Scores ------------------------------------------------------------


def statistics_of(study: Study, weights: Mapping[str, Tensor]) -> Statistics:
    """Counts of BLEU per line of the first test set, translated by these weights as every run of the study is."""
    split = next(iter(study.corpus.tests.values()))
    of = [weights_hash(weights), split.digest, study.params.decoding.model_dump(), SCORE_VERSION]

    def compute() -> Statistics:
        texts = translate_with(study, weights, list(split.source))
        found = scoring.sentence_statistics(texts, list(split.target), ["bleu"])
        return {name: counts.tolist() for name, counts in found.items()}

    return remembered(study, "subnetworks", "statistics", [*of, importlib.metadata.version("sacrebleu")], compute)


def statistics_of_run(run: Run) -> Statistics:
    """The same of the best checkpoint of a run, from its scores."""
    return next(iter(scores(run).values()))["statistics"]


def replicates(statistics: Statistics) -> np.ndarray:
    """BLEU on the test set, then on its resamples, [1 + RESAMPLES]: the same resamples for every system."""
    lines = len(statistics["sys_len"])
    counts = np.vstack([np.ones((1, lines)), line_counts(lines)]).T
    return scoring.corpus_bleu({name: (np.array(statistics[name]) @ counts)[:, None] for name in BLEU})


def with_error(drawn: np.ndarray) -> tuple[str, str]:
    """The first of `replicates`, or of their difference, and its standard error over the lines."""
    return short(drawn[0]), short(drawn[1:].std(ddof=1))


def record_scores(study: Study, chains: Iterable[Chain], at: float) -> None:
    """Scores of good, random and bad subnetworks, as pruned and retrained, and the differences between them.

    `chains`: those of `techniques.subnetworks(at)`.
    """
    rows, contrasts, cells = [], [], {}
    for chain in (chain for chain in chains if dissect.trained(chain)):
        dense, *trained = dissect.trained(chain)
        pruning, name = chain.variant.removeprefix("subnetwork=").split()
        which = name.rstrip("0123456789")
        draw = int(name.removeprefix(which) or 1) - 1
        found = [(chain.technique, run.ticket, statistics_of_run(run)) for run in trained]
        if chain.technique == "lt":  # scored as pruned, too, which needs no training
            ticket = subnetworks.pruned_ticket(dense.rewind(at=0), dense, pruning, which, draw, at)
            weights = masks.apply(dense.weights(subnetworks.CHECKPOINT), ticket.start().mask)
            found.append(("pruned", ticket, statistics_of(study, weights)))
            key = chain.seed, "", "dense", "pruned"
            if key not in cells:
                cells[key] = [replicates(statistics_of_run(dense))]
                rows.append([study.pair, chain.seed, "", "dense", 0, "", 0, "", *with_error(cells[key][0]), ""])
        for how, ticket, statistics in found:
            drawn = replicates(statistics)
            cells.setdefault((chain.seed, pruning, which, how), []).append(drawn)
            about = [study.pair, chain.seed, pruning, which, draw, how, f"{ticket.sparsity:.6g}"]
            rows.append([*about, masks.kept(prunable(ticket.start().mask)), *with_error(drawn), ticket.train_id])
    for (seed, pruning, which, how), draws in cells.items():
        for other in WORSE[which]:
            key = (seed, "", "dense", "pruned") if other == "dense" else (seed, pruning, other, how)
            if key in cells:
                difference = np.mean(draws, axis=0) - np.mean(cells[key], axis=0)
                contrasts.append([study.pair, seed, pruning, how, which, other, *with_error(difference)])
    write(study, "scores", rows)
    write(study, "contrasts", contrasts)


# Heads and structured pruning ------------------------------------------------------------


def record_pruning(study: Study, runs: Iterable[Run]) -> None:
    """The steps of the three loops of each dense run."""
    shape, rows = study.shape, []
    every, units = parts.heads(shape.layers, shape.heads), 2 * shape.layers * shape.filter
    for run, kind in itertools.product(runs, subnetworks.KINDS):
        for number, step in enumerate(subnetworks.prune_stepwise(run, kind)):
            left = [parts.place(head)[0] for head in every if head not in step["heads"]]
            by_kind = [left.count(each) for each in parts.KINDS]
            left_units = units - sum(map(len, step["units"].values()))
            about = [study.pair, run.ticket.seed, kind, f"{number:03d}", *by_kind, len(every), left_units, units]
            rows.append([*about, short(step["dev_bleu"])])
    write(study, "pruning", rows)


def record_heads(study: Study, runs: Iterable[Run]) -> None:
    """Importance of each head, BLEU without it, whether it is in the good subnetwork, and its attention pattern.

    `runs`: the dense ones. Raises InputError without that of the first seed.
    """
    shape, rows, runs = study.shape, [], list(runs)
    dissect.require_dense(study, [run.ticket.seed for run in runs])
    for run in runs:
        weights = run.weights(subnetworks.CHECKPOINT)
        importance, whole = measured(study, weights)[0], replicates(statistics_of_run(run))
        gone, looks = subnetworks.good(run)[0], attention(study, weights)
        for head in parts.heads(shape.layers, shape.heads):
            without = replicates(statistics_of(study, subnetworks.pruned(run, ([head], {}))))
            kind, layer, number = parts.place(head)
            low, high = np.quantile(without[1:] - whole[1:], [0.025, 0.975])
            numbers = [short(value) for value in (importance[head], whole[0], without[0], low, high)]
            pattern, shares = patterns.pattern(looks[kind, layer + 1], number)
            about = [study.pair, run.ticket.seed, kind, layer + 1, number + 1, *numbers, int(head not in gone), pattern]
            rows.append([*about, *(short(shares[name], 3) for name in patterns.SHARES)])
    write(study, "heads", rows)


def attention(study: Study, weights: Mapping[str, Tensor]) -> dict[tuple[str, int], patterns.Attended]:
    """What the heads of trained weights look at on dev, targets given."""
    data = study.data
    sources = data.dev_source.lists()[:SENTENCES]
    targets = study.vocabulary.encode(data.dev_reference[:SENTENCES]).lists()
    counts = [np.bincount(side.flat, minlength=len(data.vocabulary)) for side in (data.source, data.target)]
    with study.threads():
        return patterns.attended(study.loaded(weights), sources, targets, *counts)


# Masks ------------------------------------------------------------


def record_masks(study: Study, chains: Iterable[Chain]) -> None:
    """How alike masks are, of two techniques at a level and of a technique at two successive levels; densities.

    Densities are per matrix and head. The sparsity of two levels is the higher one. Random masks of two techniques are
    drawn within the mask of the first level of each, if all later ones are part of it: LT, SLT and CLT share that mask.
    """
    found: dict[tuple, dict] = {}
    alike, density, first = [], [], {}
    for chain in chains:
        masked = [run for run in chain.runs if run.mask is not None and run.record["status"] == "ok"]
        for run in masked:
            found.setdefault((chain.seed, run.sparsity), {})[chain.technique] = prunable(run.mask)
            first.setdefault((chain.seed, chain.technique), prunable(run.mask))
        for lower, higher in itertools.pairwise(masked):
            numbers = overlap.jaccards(prunable(lower.mask), prunable(higher.mask))["all"]
            about = [study.pair, chain.seed, f"{higher.sparsity:g}", "levels", chain.technique, "all"]
            alike.append([*about, *map(short, numbers)])
    for (seed, sparsity), by_technique in found.items():
        about = [study.pair, seed, f"{sparsity:g}"]
        within = {name: overlap.range_of(mask, first[seed, name]) for name, mask in by_technique.items()}
        for (one, mask), (other, beside) in itertools.combinations(by_technique.items(), 2):
            for name, numbers in overlap.jaccards(mask, beside, within[one], within[other]).items():
                alike.append([*about, "jaccard", f"{one} {other}", name, *map(short, numbers)])
        if len(by_technique) > 1:
            kappa = overlap.fleiss_kappa([overlap.flat(mask) for mask in by_technique.values()])
            numbers = map(short, (kappa, *overlap.kappa_null(list(by_technique.values()), list(within.values()))))
            alike.append([*about, "kappa", " ".join(by_technique), "all", *numbers])
        for technique, mask in by_technique.items():
            density += [[*about, technique, *row] for row in densities(mask, study.shape.heads)]
    write(study, "overlap", alike)
    write(study, "density", density)


def record_global(study: Study, runs: Iterable[Run]) -> None:
    """Density of the dense runs' matrices where one threshold prunes all of them together."""
    rows = []
    for run, level in itertools.product(runs, study.levels):
        mask = run.rewind(at=0).prune(by=run, sparsity=level, scope="global").start().mask
        about = [study.pair, run.ticket.seed, f"{level:g}", "global"]
        rows += [[*about, *row] for row in densities(mask, study.shape.heads)]
    write(study, "global", rows)


def densities(mask: Mapping[str, Tensor], number: int) -> list[list]:
    """Matrix, head ("" for the whole matrix), share kept, share of rows and of columns without any weight."""
    rows = []
    for name, kept in mask.items():
        dead = [short(float((~kept.any(axis)).float().mean())) for axis in (1, 0)]
        rows.append([name, "", short(float(kept.float().mean())), *dead])
        if "attention" in name:
            sides = kept.t() if name.endswith("output") else kept
            for i, head in enumerate(sides.view(number, -1, sides.shape[1]), start=1):
                shares = short(float(head.float().mean())), short(float((~head.any(1)).float().mean()))
                rows.append([name, i, *shares, ""])
    return rows


# Between seeds ------------------------------------------------------------


def record_between_seeds(study: Study, runs: Sequence[Run]) -> None:
    """Do two seeds keep the same heads? Heads of a layer are exchangeable, so they are matched by their attention.

    For each two seeds, with heads matched and with those of the same index: the mean correlation of their attention,
    Fleiss' kappa of the heads in the good subnetworks, and 95% of it where survivors are drawn at random within each
    attention, as many as it has.
    """
    rows, shape = [], study.shape
    every = parts.heads(shape.layers, shape.heads)
    attentions = [head.rpartition(".")[0] for head in every]
    for one, other in itertools.combinations(runs, 2):
        looks = [attention(study, run.weights(subnetworks.CHECKPOINT)) for run in (one, other)]
        partner, alike = {}, {"matched": [], "unmatched": []}
        for name in dict.fromkeys(attentions):
            kind, layer, _ = parts.place(f"{name}.0")
            correlation = patterns.correlations(*(look[kind, layer + 1] for look in looks))
            for i, j in zip(*linear_sum_assignment(-correlation), strict=True):
                partner[f"{name}.{i}"] = f"{name}.{j}"
                alike["matched"].append(correlation[i, j])
                alike["unmatched"].append(correlation[i, i])
        gone = [{*subnetworks.good(run)[0]} for run in (one, other)]
        first = np.array([head not in gone[0] for head in every])
        for how, names in (("matched", [partner[head] for head in every]), ("unmatched", every)):
            second = np.array([head not in gone[1] for head in names])
            kappa, low, high = overlap.kappa_with_null(first, second, one.ticket.seed, attentions)
            about = [study.pair, f"{one.ticket.seed}-{other.ticket.seed}", how, short(np.mean(alike[how]))]
            rows.append([*about, short(kappa), short(low), short(high)])
    write(study, "seeds", rows)
