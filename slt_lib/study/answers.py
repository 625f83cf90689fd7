"""A recipe's runs next to its default's and to the dense model, for `slt_lib.report.pictures`; nothing is trained."""

import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import pandas as pd

from slt_lib.report.data import NUMBERS, RESULT_COLUMNS, Figures, load, read_study
from slt_lib.report.pictures import Answer
from slt_lib.study.chains import Chain, foresee
from slt_lib.study.opening import Opened
from slt_lib.study.results import figures, labels, result_rows, row_labels
from slt_lib.study.runs import Run, StandIn
from slt_lib.study.scores import SCORE_VERSION, scores
from slt_lib.study.study import Study


@dataclass(frozen=True, eq=False)
class InMemory(Figures):
    """The rows of some runs as figures, for `slt_lib.report`, without a folder."""

    sentences: pd.DataFrame | None = None


def in_memory(study: Opened, entries: Iterable[tuple[Chain, Run, str]], more: Figures | None = None) -> InMemory:
    """The rows and sentences of (chain, run, checkpoint) on the first test set, and those of `more` figures.

    Scores that are not stored are computed.
    """
    test_set, rows, sentences = next(iter(study.corpus.tests)), {}, {}
    for chain, run, checkpoint in entries:
        technique, variant = row_labels(study, chain, run, checkpoint)
        found = scores(run, checkpoint) if run.record["status"] == "ok" else {}
        row = result_rows(study, technique, variant, run, checkpoint, found)[0]
        rows[technique, variant, row["sparsity"], row["seed"]] = row
        for score in [found[test_set]] if found else ():
            frame = pd.DataFrame(score["statistics"])
            sentences[row["run"]] = frame.assign(run=row["run"], test_set=test_set, line=range(1, len(frame) + 1))
    frame = pd.DataFrame(rows.values(), columns=RESULT_COLUMNS)
    frame[NUMBERS] = frame[NUMBERS].apply(pd.to_numeric).astype(float)
    if more is not None:
        frame = pd.concat([frame, more.results], ignore_index=True)
        sentences[""] = more.sentences[~more.sentences.run.isin(sentences)]
    return InMemory(
        path=figures(study.name),
        name=study.name,
        levels=sorted({*frame.sparsity} - {0.0}),
        results=frame,
        rehearsal=study.params.rehearsal,
        pairs={study.pair: study.params.pairs[study.pair]},
        steps=study.params.training.steps,
        test_sets={study.pair: [test_set]},
        sentences=pd.concat(sentences.values()) if sentences else None,
    )


def published(study: Opened, names: Mapping[str, tuple[str, str]]) -> InMemory | None:
    """The rows of some runs in the study's figures folder; None if it has none. `names`: id -> technique and variant.

    Raises InputError if the folder is malformed.
    """
    folder = figures(study.name)
    if not (folder / "results.csv").is_file() or read_study(folder).get("merged", {}).get("score") != SCORE_VERSION:
        return None
    there, test_set = load(folder), next(iter(study.corpus.tests))
    rows = there.results
    labelled = zip(rows.run, rows.technique, rows.variant, strict=True)
    wanted = pd.Series([names.get(run) == tuple(name) for run, *name in labelled], rows.index, dtype=bool)
    rows = rows[wanted & (rows.pair == study.pair) & (rows.test_set == test_set)]
    lines = there.sentences
    if rows.empty or lines is None:
        return None
    own = {field.name: getattr(there, field.name) for field in fields(there)} | {"results": rows}
    return InMemory(**own, sentences=lines[lines.run.isin(rows.run) & (lines.test_set == test_set)])


def default_of(study: Study, chain: Chain) -> Chain | None:
    """A new chain of the same recipe with every knob at its default; None if the chain is that of the default.

    If only the levels differ from the study's, the default has the study's.
    """
    if chain.again is None or not any(chain.variant_of(run) for run in chain.runs):
        return None
    return study.chain(chain.again.func, chain.seed, chain.levels if chain.variant else study.params.levels)


def usual(chain: Chain) -> dict[str, object]:
    """The default of each knob of a chain that differs from it, as the signature of its recipe has it.

    The levels are among them only if nothing else differs.
    """
    defaults = inspect.signature(chain.again.func).parameters
    given = chain.again.keywords.items()
    changed = {name: defaults[name].default for name, value in given if value != defaults[name].default}
    return changed if chain.variant else {"levels": []}


def compare(study: Study, chains: Iterable[Chain], dense: Iterable[Chain]) -> tuple[Answer, list[float]]:
    """The runs of chains of one recipe, next to those of its default and to the dense model; trains nothing.

    The default's runs come from the store, otherwise from the study's figures folder. Also returns the levels at which
    they are in neither.
    """
    chains, entries, find = list(chains), [], functools.partial(study.find, tell=False)
    defaults = [default for chain in chains if (default := default_of(study, chain))]
    for default in defaults:
        list(foresee(study, default, find))  # to its end
    for chain in [*dense, *defaults, *chains]:
        entries += [(chain, run, "best") for run in chain.runs if not isinstance(run, StandIn)]
    runs = [(run, labels(study, default, run)) for default in defaults for run in default.runs if run.sparsity]
    lacking = {run.id: name for run, name in runs if isinstance(run, StandIn)}
    held = in_memory(study, entries, published(study, lacking) if lacking else None)
    cells = {run.sparsity: held.cell(study.pair, name[0], run.sparsity, name[1]) for run, name in runs}
    own = {run.sparsity: labels(study, chain, run) for chain in chains for run in chain.runs if run.sparsity}
    yours = {level: held.cell(study.pair, name, level, variant) for level, (name, variant) in own.items()}
    variants = (chain.variant_of(run) for chain in chains for run in chain.runs)
    answer = Answer(
        held,
        study.pair,
        technique=chains[0].technique,
        variant=next(filter(None, variants), ""),
        dense=held.cell(study.pair, "dense", 0),
        yours=yours,
        default={level: cell for level, cell in cells.items() if cell},
    )
    return answer, [level for level, cell in cells.items() if not cell]
