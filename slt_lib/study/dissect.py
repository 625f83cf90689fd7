"""What pruning does inside a translator: the runs of a study looked into, written to dissect_*.csv.

After Movva and Zhao (2020), with a floor (the untrained model) and three ceilings. The measures are in `analysis`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from slt_lib.analysis import activations, attention, probes, similarity, tasks, words
from slt_lib.base import settings
from slt_lib.base.errors import InputError
from slt_lib.base.store import digest
from slt_lib.data import corpora
from slt_lib.data.grammar import generate
from slt_lib.report import dissect as files
from slt_lib.study.rows import remembered, replace
from slt_lib.study.runs import Run
from slt_lib.study.scores import scores, translate
from slt_lib.study.start import own_sentences
from slt_lib.study.study import Chain, Study
from slt_lib.study.tickets import check_choice

PIECES = 10_000  # word pieces of a side that similarity needs, as CKA of fewer is above 0 for independent noise
VERSION = 2  # raise when a change of code changes a measured number


@dataclass(frozen=True)
class Subject:
    """A model to look into: its row labels, what identifies its weights, and how to read them.

    technique: "dense", one of the study's, or a control of `files.CONTROLS`. sparsity: for the control "again" the
    level that has as many trainings before it.
    """

    technique: str
    sparsity: float
    seed: int
    key: str
    weights: Callable[[], dict[str, Tensor]]
    run: Run | None = None

    @classmethod
    def of(cls, run: Run, technique: str, sparsity: float) -> "Subject":
        """A trained run, with the weights of its best checkpoint."""
        weights = run.record["best"]["step"], run.weights_hash
        return cls(technique, sparsity, run.ticket.seed, digest([run.id, *weights]), lambda: run.weights("best"), run)

    @property
    def labels(self) -> list[str]:
        """The cells of its rows after the pair: seed, technique and sparsity."""
        return [str(self.seed), self.technique, f"{self.sparsity:g}"]


@dataclass(frozen=True)
class Text:
    """Sentences of dev and the test sets as ids, each with EOS, and their translations."""

    sources: list[list[int]]
    targets: list[list[int]]

    @property
    def key(self) -> str:
        return digest([self.sources, self.targets])


def text(study: Study, sentences: int) -> Text:
    """`sentences` of dev and the test sets, spread evenly; all if there are fewer.

    Raises InputError below 1, and where a side has fewer than `PIECES` word pieces, unless the study is a rehearsal.
    """
    _at_least_one("sentences", sentences)
    chosen = _spread(study, sentences)
    found = Text(*(study.vocabulary.encode([row[side] for row in chosen]).lists() for side in (2, 3)))
    pieces = min(sum(len(ids) - 1 for ids in lists) for lists in (found.sources, found.targets))
    if pieces < PIECES and not study.params.rehearsal:
        raise InputError(f"sentences: {len(chosen)} have {pieces:,} word pieces, but {PIECES:,} are needed; give more")
    return found


def _at_least_one(key: str, sentences: int) -> None:
    if sentences < 1:
        raise InputError(f"{key}: {sentences} is not a number of sentences; give 1 or more")


def _spread(study: Study, sentences: int) -> list[tuple[str, int, str, str]]:
    """Split, line (from 1), source and target of sentences of dev and the test sets, spread evenly."""
    every = []
    for split in (study.corpus.dev, *study.corpus.tests.values()):
        lines = enumerate(zip(split.source, split.target, strict=True), start=1)
        every += [(split.name, number, *sides) for number, sides in lines]
    chosen = np.linspace(0, len(every) - 1, min(sentences, len(every))).round().astype(int)
    return [every[i] for i in chosen]


def levels_of(study: Study, levels: Sequence[float]) -> list[float]:
    """`levels`, or those of `files.LEVELS` that the study has. Raises InputError for a level that it does not have."""
    study.require_levels("levels", levels)
    return list(levels) or [level for level in study.levels if level in files.LEVELS] or study.levels


def dense(runs: Mapping[int, Run]) -> list[Subject]:
    """The dense runs, by seed, as subjects."""
    return [Subject.of(run, "dense", 0.0) for run in runs.values()]


def sparse(chains: Iterable[Chain], levels: Sequence[float]) -> list[Subject]:
    """The runs of `chains` at `levels` as subjects; failed runs are left out."""
    runs = [(run, chain.technique) for chain in chains for run in trained(chain) if run.sparsity in levels]
    return [Subject.of(run, technique, run.sparsity) for run, technique in runs]


def trained(chain: Chain) -> list[Run]:
    """Its runs that did not fail."""
    return [run for run in chain.runs if run.record["status"] == "ok"]


def chosen(study: Study, subjects: Iterable[Subject], names: Sequence[str], levels: Sequence[float]) -> list[Subject]:
    """The subjects of some techniques at some levels; none named: MP and SLT at 0.9 in a rehearsal, all otherwise.

    Raises InputError for a level that no subject has, and for an unknown technique.
    """
    subjects = list(subjects)
    there, own = sorted({one.sparsity for one in subjects}), {one.technique for one in subjects}
    for name in names:
        check_choice("probe_techniques", name, tuple(dict.fromkeys([*settings.TECHNIQUES, *own])))
    for level in levels:
        if level not in there:
            raise InputError(f"probe_levels: no model of {level} is looked into; take some of {there}")
    names = names or (("mp", "slt") if study.params.rehearsal else own)
    levels = levels or ([0.9] if study.params.rehearsal and 0.9 in there else there)
    return [one for one in subjects if one.technique in names and one.sparsity in levels]


def require_dense(study: Study, seeds: Iterable[int]) -> None:
    """Raises InputError if the study's first seed is not among `seeds`, those whose dense run is trained."""
    if study.seeds[0] not in seeds:
        what = f"{study.name} {study.pair}: the dense run of seed {study.seeds[0]} is not trained yet"
        raise InputError(f"{what}; train it (stored=False) or choose other seeds")


def controls(
    study: Study, runs: Mapping[int, Run], noise: Iterable[Chain], again: Iterable[Chain], levels: Sequence[float]
) -> list[Subject]:
    """The floor and the ceilings of each seed. `runs`: the dense ones by seed.

    `noise`: chains that end in copies of the dense ticket, `again`: chains of the dense run rewound and trained again.
    Raises InputError without the dense run of the first seed, with which those of other seeds are compared.
    """
    require_dense(study, runs)
    found = []
    for ticket in map(study.ticket, runs):
        found.append(Subject("untrained", 0.0, ticket.seed, digest([ticket.identity, "theta_0"]), ticket.theta_0))
    copies = [run for chain in noise for run in trained(chain) if run.ticket.noise == 1]
    found += [Subject.of(run, "noise", 0.0) for run in copies]
    for chain in again:
        deeper = [run for run in trained(chain) if run.ticket.depth]
        at = {level: run for level, run in zip(study.levels, deeper, strict=False) if level in levels}
        found += [Subject.of(run, "again", level) for level, run in at.items()]
    found += [Subject.of(run, "seed", 0.0) for seed, run in runs.items() if seed != study.seeds[0]]
    return found


def record_insides(study: Study, runs: Mapping[int, Run], subjects: Iterable[Subject], of: Text) -> None:
    """Compare each subject with the dense model of its seed: similarity, complexity and attention, as three files.

    The control "seed" is compared with the dense model of the study's first seed. A comparison is made once and kept in
    the store. Rows of the same pair and seeds are replaced.
    """
    references = {one.seed: one for one in dense(runs)}
    rows, memory = {file: [] for file in files.INSIDE}, {}
    for subject in sorted([*references.values(), *subjects], key=lambda each: each.seed):
        other = references[study.seeds[0] if subject.technique == "seed" else subject.seed]
        for file, found in _compared(study, subject, other, of, memory).items():
            rows[file] += [[study.pair, *subject.labels, *row] for row in found]
    for file in files.INSIDE:
        replace(study, file, files.FILES[file], rows[file], same=2)


def _compared(study: Study, one: Subject, other: Subject, of: Text, memory: dict) -> dict[str, list[list[str]]]:
    """File -> rows of one comparison. `memory`: the inside of the last reference, which many comparisons share."""

    def compute() -> dict[str, list[list[str]]]:
        if other.key not in memory:
            memory.clear()
            memory[other.key] = _inside(study, other, of)
        inside, reference = _inside(study, one, of), memory[other.key]
        rows = {file: [] for file in files.INSIDE}
        for site, states in inside[1].items():
            side, layer = site.split(".")
            for place, others in reference[1].items():
                if place.startswith(side):
                    found = similarity.similarity(states, others)
                    values = [f"{found[name]:.5f}" for name in similarity.MEASURES]
                    if one.technique == "seed":  # the neurons of two seeds have no common order
                        values[-1] = ""
                    rows[files.SIMILARITY].append([side, layer, place.split(".")[1], *values])
            found = similarity.complexity(states)
            rows[files.COMPLEXITY].append([side, layer, *(f"{value:.5g}" for value in found.values())])
        for (kind, layer), heads in attention.compare(inside[0], reference[0]).items():
            for head in heads.rows():
                if one.technique == "seed":  # the heads of two seeds have no common order
                    head |= dict.fromkeys(("correlation", "divergence", "best_head"), "")
                shown = [f"{value:.5f}" if isinstance(value, float) else str(value) for value in head.values()]
                rows[files.ATTENTION].append([kind, str(layer), *shown])
        return rows

    key = [VERSION, "inside", one.technique == "seed" and "no index", one.key, other.key, of.key]
    return remembered(study, "dissect", "value", key, compute)


def _inside(study: Study, subject: Subject, of: Text) -> tuple[list, dict[str, similarity.Moments]]:
    """The traces of a model, and site -> its moments."""
    traces = list(activations.traces(study.loaded(subject.weights()), of.sources, of.targets))
    states, _ = activations.gather(traces)
    return traces, {site: similarity.Moments.of(state.cpu().numpy()) for site, state in states.items()}


# Probes ------------------------------------------------------------


def probe_tasks(study: Study, sentences: int) -> tuple[list[str], list[probes.Task]]:
    """The sentences that a model reads for its probes, and the tasks.

    With the corpus `grammar` new sentences are drawn, none of them of the training text, and their structure gives
    tasks. With other corpora these are sentences of dev and the test sets, and labels.tsv of a `files` corpus gives
    tasks. Raises InputError if the sentences give no task.
    """
    _at_least_one("probe_sentences", sentences)
    vocabulary, about = study.vocabulary, study.params.corpus
    if isinstance(about, settings.Grammar):
        made = generate({"probe": sentences}, about.seed, structure=True)["probe"]
        trained = set(study.corpus.train.source)
        side = corpora.LANGUAGES.index(study.corpus.languages[0])
        made = [(texts[side], structure) for texts, structure in made if texts[side] not in trained]
        lines = [line for line, _ in made]
        own = tasks.grammar_tasks(vocabulary, study.pair, *zip(*made, strict=True))
    else:
        chosen = _spread(study, sentences)
        lines = [source for _, _, source, _ in chosen]
        own = []
        if isinstance(about, settings.Files):
            path = corpora.folder_of(about.folder) / tasks.LABELS
            own = tasks.own_tasks(path, vocabulary, lines, [row[:2] for row in chosen])
    if not (found := [*tasks.corpus_tasks(vocabulary, lines), *own]):
        raise InputError(f"probe_sentences: {sentences} sentences give no task enough examples; give more sentences")
    return tasks.probed(lines), found


def record_probes(
    study: Study, subjects: Iterable[Subject], lines: list[str], found: list[probes.Task], draws: int
) -> None:
    """Probe every encoder site of each subject on `draws` random splits: dissect_probes.csv.

    `lines` and `found`: see `probe_tasks`. Rows of the same pair and seeds are replaced.
    """
    ids = study.vocabulary.encode(lines).lists()
    named = [
        [task.name, task.group, task.spans.tolist(), task.labels.tolist(), task.forms.tolist(), task.by_form]
        for task in found
    ]
    of, rows = digest([ids, named, draws]), []
    for subject in subjects:
        key = [VERSION, "probes", subject.key, of]
        measure = functools.partial(_probed, study, subject, ids, found, draws)
        rows += [[study.pair, *subject.labels, *row] for row in remembered(study, "dissect", "value", key, measure)]
    replace(study, files.PROBES, files.FILES[files.PROBES], rows, same=2)


def _probed(study: Study, subject: Subject, ids: list, found: list[probes.Task], draws: int) -> list[list[str]]:
    states, sentence = activations.gather(activations.traces(study.loaded(subject.weights()), ids))
    rows = []
    for site, state in states.items():
        inputs = probes.vectors(state.cpu().numpy(), sentence["encoder"].cpu().numpy(), found)
        for task, x in zip(found, inputs, strict=True):
            for draw in range(draws):
                values = probes.probe(task, x, draw).values()
                shown = ["" if np.isnan(value) else f"{value:.5f}" for value in values]
                rows.append([site.split(".")[1], task.name, task.group, str(draw), str(len(x)), *shown])
    return rows


# Words ------------------------------------------------------------


def record_words(study: Study, subjects: Iterable[Subject], own: Sequence[str] = ()) -> None:
    """BLEU by length, recall by frequency, numbers and nouns kept, on the first test set: dissect_words.csv.

    Also the translations of `own`, by default `own_sentences`, by the models of the first seed:
    dissect_translations.csv. Subjects without a run are left out. Rows of the same pair and seeds are replaced, and all
    translations of the pair.
    """
    test = next(iter(study.corpus.tests.values()))
    seen, rows, shown = words.frequencies(study.corpus.train.target), [], []
    own = own or own_sentences(study)
    for subject in (subject for subject in subjects if subject.run):
        about = [study.pair, *subject.labels]
        score = scores(subject.run)[test.name]
        sides = score["hypotheses"], test.target
        found = {
            "bleu by length": words.bleu_by_length(score["statistics"], test.source),
            "recall by frequency": words.recall_by_frequency(*sides, seen),
            "kept": words.kept(*sides, test.source, study.pair),
        }
        for measure, bands in found.items():
            rows += [[*about, measure, i, band, f"{value:.5f}", n] for i, (band, value, n) in enumerate(bands)]
        if own and subject.seed == study.seeds[0]:
            key = [VERSION, "translations", subject.key, list(own), study.params.decoding.model_dump()]
            texts = remembered(study, "dissect", "value", key, lambda run=subject.run: translate(run, list(own)))
            shown += [[*about, *row] for row in zip(itertools.count(), own, texts, strict=False)]
    for file, lines, same in ((files.WORDS, rows, 2), (files.TRANSLATIONS, shown, 1)):
        replace(study, file, files.FILES[file], lines, same)
