"""What is computed from a run and stored next to it: translations, scores, mean magnitudes, memory."""

import importlib.metadata
from collections.abc import Mapping

import torch
from torch import Tensor

from slt_lib import memory
from slt_lib.base.devices import device
from slt_lib.base.store import digest, recall, remember
from slt_lib.evaluation import decoding, scoring
from slt_lib.sparse.engine import Engine
from slt_lib.study.opening import Opened
from slt_lib.study.runs import Run
from slt_lib.train import loop as training
from slt_lib.transformer import Transformer, prunable

SCORE_VERSION = 1  # raise when a code change changes scores


def translate(run: Run, sentences: list[str], checkpoint: str = "best") -> list[str]:
    """Translate raw sentences by beam search with the study's decoding settings.

    `checkpoint` and errors: see `Run.weights`.
    """
    return translate_with(run.study, run.weights(checkpoint), sentences)


def translate_with(study: Opened, weights: Mapping[str, Tensor], sentences: list[str]) -> list[str]:
    """As `translate`, by a model with these weights."""
    options, sources = study.params.decoding, study.vocabulary.encode(sentences).lists()
    with study.threads():
        model = decoder(study, weights)
        found = decoding.translate(model, sources, options.beam, options.alpha, options.extra)
    return study.vocabulary.decode(found)


def decoder(study: Opened, weights: Mapping[str, Tensor]) -> Engine | Transformer:
    """What `decoding.translate` runs fastest with these weights: the engine on a CPU, the model elsewhere."""
    if device().type == "cpu":
        return Engine(study.shape, weights)
    return study.loaded(weights)


def scores(run: Run, checkpoint: str = "best") -> dict[str, dict]:
    """Test set -> bleu, ter, ter_13a (percent), signatures, sentence statistics; computed once and stored."""
    return {name: _score(run, name, checkpoint) for name in run.study.corpus.tests}


def scored(run: Run, checkpoint: str = "best") -> bool:
    """Whether the scores of a checkpoint are stored for every test set."""
    return all(run.folder.score(score_id(run, name, checkpoint)).exists() for name in run.study.corpus.tests)


def score_id(run: Run, test_set: str, checkpoint: str = "best") -> str:
    """Identity of a score: the run, the test set and everything that affects only scores."""
    of = {
        "run": run.id,
        "version": SCORE_VERSION,
        "sacrebleu": importlib.metadata.version("sacrebleu"),
        "decoding": run.study.params.decoding.model_dump(),
        "checkpoint": checkpoint,
        "test": run.study.corpus.tests[test_set].digest,
    }
    steps = run.averaged_steps(checkpoint)
    return digest(of | ({"steps": steps} if steps else {}))[:32]


def _score(run: Run, test_set: str, checkpoint: str) -> dict:
    path = run.folder.score(score_id(run, test_set, checkpoint))
    if (score := recall(path, "bleu", "ter", "ter_13a", "signatures", "statistics")) is not None:
        return score
    split = run.study.corpus.tests[test_set]
    hypotheses = translate(run, list(split.source), checkpoint)
    statistics = scoring.sentence_statistics(hypotheses, list(split.target))
    score = {
        "test_set": test_set,
        "bleu": float(scoring.corpus_bleu(statistics)),
        "ter": float(scoring.corpus_ter(statistics)),
        "ter_13a": float(scoring.corpus_ter(statistics, "ter_13a")),
        "signatures": scoring.signatures(),
        "statistics": {name: [int(value) for value in values] for name, values in statistics.items()},
        "hypotheses": hypotheses,
    }
    remember(path, score)
    return score


def magnitudes(run: Run, start: training.Start | None = None) -> dict[str, dict]:
    """Matrix -> rows, columns, kept, and mean |w| of the finally kept weights, at the start and at the end.

    Computed once and stored; `start` avoids reading the start of the ticket again. Empty for a failed run.
    """
    path = run.folder / "magnitudes.json"
    if (stored := recall(path, "matrices")) is not None:
        return stored["matrices"]
    if run.record["status"] == "failed":
        return {}
    first, matrices = (start or run.ticket.start()).weights, {}
    for name, weight in prunable(run.weights("final")).items():
        kept = torch.ones_like(weight, dtype=torch.bool) if run.mask is None else run.mask[name]
        starting, final = (float(w[kept].abs().mean()) if kept.any() else 0.0 for w in (first[name], weight))
        matrices[name] = {
            "rows": weight.shape[0],
            "columns": weight.shape[1],
            "kept": int(kept.sum()),
            "mean_abs_start": starting,
            "mean_abs_final": final,
        }
    remember(path, {"matrices": matrices})
    return matrices


def memory_mib(run: Run) -> float:
    """The paper's memory column for the best checkpoint, in MiB (FACTS.md section 4)."""
    return memory.paper_mib(prunable(run.weights("best")))
