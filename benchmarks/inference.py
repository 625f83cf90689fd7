"""Sentences per second of dense and sparse translation, and of CTranslate2 on the same weights.

All systems translate the same random sentences with random weights, each in its own process: in one process, the engine
ran at 0.6 of its speed once CTranslate2 was loaded, for a reason that was not found. The end of a sentence is forced
after as many word pieces as the source has, so that every system does the same number of steps.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.table import OURS
from slt_lib import masks
from slt_lib.base.processes import cores
from slt_lib.evaluation import decoding
from slt_lib.sparse import ctranslate
from slt_lib.sparse.engine import DenseMatrix, Engine
from slt_lib.transformer import EOS, PAD, UNKNOWN, Shape, Transformer, prunable

SHAPES = {
    "multi30k": Shape(vocabulary=4000, layers=2, hidden=192, filter=512, heads=4),
    "multi30k-large": Shape(vocabulary=5000, layers=3, hidden=256, filter=512, heads=4),
    "the paper's": Shape(vocabulary=33708, layers=6, hidden=512, filter=2048, heads=8),
}
SPARSE = {f"{100 * level:g}% sparse": level for level in (0.9, 0.95, 0.98)}
SERVED = {f"CTranslate2 {kind}": kind for kind in ("float32", "int8")}
BATCH = 64  # sentences that a thread translates at once
PIECES = 14  # of each source and translation, the end included
BEFORE = "training model"  # `Transformer.step`, with which dev is translated during a training
ROUNDED = "dense bf16"  # only where the processor has matrix units for it (AMX): elsewhere bf16 is slow
SYSTEMS = (BEFORE, OURS, *([ROUNDED] if torch.cpu._is_amx_tile_supported() else []), *SPARSE, *SERVED)


class Endless:
    """A model that never ends a sentence by itself; its other attributes are those of `model`."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def step(self, *arguments) -> torch.Tensor:
        logits = self.model.step(*arguments)
        logits[:, EOS] = -1e9
        return logits


def speeds(shape: Shape, system: str, seconds: float) -> None:
    """Answer each line of standard input, "sentences beam", with the sentences per second of a system."""
    translate = translator(shape, system)
    for line in sys.stdin:
        count, beam = map(int, line.split())
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(3, shape.vocabulary, (count, PIECES - 1), generator=generator).tolist()
        sources = [[*ids, EOS] for ids in drawn]
        print(measured(partial(translate, sources, beam), count, seconds), flush=True)


def translator(shape: Shape, system: str) -> Callable:
    """The function of sentences of ids and beam that is `system`, one of `SYSTEMS`; all have the same weights."""
    weights = {name: weight.detach() for name, weight in Transformer(shape, 1).named_parameters()}
    if system in SERVED:
        return served(shape, weights, SERVED[system])
    if system in SPARSE:
        pruned = masks.apply(weights, masks.magnitude_mask(prunable(weights), SPARSE[system]))
        return own(Engine(shape, pruned))
    if system == ROUNDED:
        return own(Engine(shape, weights, Rounded))
    if system == OURS:
        return own(Engine(shape, weights, DenseMatrix))
    before = Transformer(shape)
    before.load_state_dict(weights)
    return own(before)


class Rounded(DenseMatrix):
    """`DenseMatrix` in bf16."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__(matrix.bfloat16(), torch.zeros(len(matrix)).bfloat16() if bias is None else bias.bfloat16())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, self.matrix, x.bfloat16()).float()


def own(model) -> Callable:
    return lambda sources, beam: decoding.translate(Endless(model), sources, beam, extra=0, batch_sentences=BATCH)


def served(shape: Shape, weights, kind: str) -> Callable:
    """CTranslate2 with all threads on one batch of 64, or such a batch per thread, whichever is faster."""
    import ctranslate2  # in this process alone

    words = [f"w{i}" for i in range(shape.vocabulary - 3)]
    names = {PAD: "<pad>", EOS: "</s>", UNKNOWN: "<unk>"}
    tokens = [names.get(i) or words[i - 3] for i in range(shape.vocabulary)]
    with tempfile.TemporaryDirectory() as folder:
        ctranslate.save(Path(folder), shape, weights, _Words(tokens))
        ways = [
            ctranslate2.Translator(folder, compute_type=kind, inter_threads=inter, intra_threads=cores() // inter)
            for inter in (1, cores())
        ]

    def translate(translator, sources, beam):
        text = [[tokens[i] for i in ids] for ids in sources]
        options = {"min_decoding_length": PIECES, "max_decoding_length": PIECES, "max_batch_size": BATCH}
        return translator.translate_batch(text, beam_size=beam, **options)

    best = {}

    def fastest(sources, beam):
        key = len(sources), beam
        if key not in best:
            taken = [1 / measured(lambda w=way: translate(w, sources, beam), 1, 1.0) for way in ways]
            best[key] = ways[taken.index(min(taken))]
        return translate(best[key], sources, beam)

    return fastest


class _Words:
    """The part of a Vocabulary that `ctranslate.save` reads."""

    text = "{}"

    def __init__(self, tokens: list[str]):
        self.tokens, self.tokenizer = tokens, self

    def __len__(self) -> int:
        return len(self.tokens)

    def id_to_token(self, number: int) -> str:
        return self.tokens[number]


def measured(call: Callable, count: int, seconds: float) -> float:
    """Sentences per second: the fastest of the calls that fit into `seconds`, at least two."""
    best, until, turns = float("inf"), time.perf_counter() + seconds, 0
    while turns < 2 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        best, turns = min(best, time.perf_counter() - began), turns + 1
    return count / best
