"""Kept weights and translations of the runs of a study, for the notebook 00_start: start.csv."""

from collections.abc import Iterable

import torch
from torch.nn.functional import avg_pool2d

from slt_lib.report.start import COLUMNS, FILE, KEPT, MATRIX, SOURCE, encode
from slt_lib.study.chains import Chain
from slt_lib.study.opening import Opened
from slt_lib.study.results import row_labels
from slt_lib.study.rows import remembered, replace
from slt_lib.study.runs import Run
from slt_lib.study.scores import translate

BLOCKS = 32  # at most, along each side of the picture
VERSION = 1  # raise when a change of code changes a picture or a translation
OWN = {  # sentences to read, by the name of the corpus; written for this purpose
    "grammar": [
        "The old teacher gives the child two apples.",
        "Yesterday my sister did not see the dogs in the garden.",
        "The horse that the farmer buys is strong.",
        "We will visit the museum because the city is beautiful.",
    ],
    "multi30k": [
        "Two girls in red jackets are feeding three ducks by a lake.",
        "An old man with a grey beard plays the accordion in front of a bakery.",
        "The boy who is holding an umbrella waits for the bus.",
        "A brown dog jumps over a fence while five children watch.",
    ],
}


def own_sentences(study: Opened) -> list[str]:
    """The sentences of `OWN` for the study's corpus; none unless it is translated from English."""
    return OWN.get(study.params.corpus.name, OWN["multi30k"]) if study.pair.startswith("en-") else []


def record_start(study: Opened, chains: Iterable[Chain]) -> None:
    """Write kept weights and translations of the runs of `chains` to start.csv; rows of the same cell are replaced.

    Only scored runs of the study's first seed without a variant have rows. A run is translated once; the result is kept
    in the store. Sentences are the `own_sentences`.
    """
    lines = own_sentences(study)
    rows = {}
    for chain in chains:
        for run in chain.runs:
            technique, variant = row_labels(study, chain, run, "best")
            listed = run.ticket.listed and run.record["status"] == "ok"
            if listed and not variant and run.ticket.seed == study.params.seeds[0]:
                about = study.pair, technique, f"{run.sparsity:g}", str(run.ticket.seed)
                rows |= {(*about, what): value for what, value in _values(run, lines).items()}
    if not rows:
        return
    seed = str(study.params.seeds[0])
    rows |= {(study.pair, SOURCE, "0", seed, f"sentence {n}"): line for n, line in enumerate(lines, start=1)}
    found = [[*key, value] for key, value in rows.items()]
    replace(study, FILE, COLUMNS, found, same=5, order=lambda row: [*row[:2], float(row[2]), row])


def _values(run: Run, lines: list[str]) -> dict[str, str]:
    """`what` -> value of a run."""

    def compute() -> dict[str, str]:
        texts = enumerate(translate(run, lines) if lines else [], start=1)
        return {KEPT: encode(_shares(run).numpy())} | {f"sentence {n}": text for n, text in texts}

    of = [VERSION, run.id, run.weights_hash, lines, run.study.params.decoding.model_dump()]
    return remembered(run.study, "start", "values", of, compute)


def _shares(run: Run) -> torch.Tensor:
    """The share of kept weights per block of `MATRIX`: 8x8 weights, more where that gives over `BLOCKS` blocks."""
    kept = torch.ones(run.study.shapes[MATRIX]) if run.mask is None else run.mask[MATRIX].float()
    side = 8 * -(-max(kept.shape) // (8 * BLOCKS))
    return avg_pool2d(kept[None], side, ceil_mode=True)[0]
