"""Translation by beam search with cached keys and values, as tensor2tensor does it (FACTS.md, section 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slt_lib.base.devices import threads
from slt_lib.base.processes import FORKS, forked

PAD, EOS = 0, 1
DIVERGED = "the model's logits hold NaN: its training has diverged"


def translate(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    beam: int = 4,
    alpha: float = 0.6,
    extra: int = 100,
    batch_sentences: int = 64,
) -> list[list[int]]:
    """Translate sentences of ids; the translations have the order of the sources and no EOS.

    A hypothesis with log probability p and length L (EOS included) scores p / ((5 + L) / 6) ** alpha. It has at most
    len(source) + extra ids. `beam=1` is greedy search, as in tensor2tensor. Of equal scores, the lower id wins. The
    batch size changes results only by rounding errors.

    Args:
        model: offers `encode(source [B, S]) -> memory`, `start(memory, source) -> cache` (a dict of tensors, batch
            first) and `step(previous [B], position, cache) -> logits [B, V]`, which updates the cache in place. Entries
            named `self_*` belong to one hypothesis, all others to its sentence. `sparse.engine.Engine` is such a model
            with its own cache.
        sources: ids of each sentence, each ending in EOS (1); no padding (0).
        beam: number of hypotheses per sentence.
        alpha: exponent of the length penalty, 0 or more; 0 means no penalty.
        extra: number of ids by which a translation may be longer than its source.
        batch_sentences: sentences per batch. The model runs on `beam` times as many rows. If it has the attribute
            `single_threaded`, several batches are translated at a time, in as many processes as torch has threads.

    Raises:
        ValueError: a source without ids, `beam` or `batch_sentences` below 1, `alpha` or `extra` below 0.
        FloatingPointError: the model's logits hold NaN, as after a training that has diverged.
    """
    _check(sources, beam, alpha, extra, batch_sentences)
    answers: list[list[int]] = [[] for _ in sources]
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    batches = [order[first : first + batch_sentences] for first in range(0, len(order), batch_sentences)]
    count = torch.get_num_threads()
    jobs = min(count, len(batches)) if FORKS and getattr(model, "single_threaded", False) else 1

    @torch.inference_mode()
    def search(chosen: list[int]) -> list[list[int]]:
        batch = [sources[index] for index in chosen]
        return _greedy(model, batch, extra) if beam == 1 else _beam_search(model, batch, beam, alpha, extra)

    with threads(1 if jobs > 1 else count), forked(search, jobs) as each:
        for chosen, found in zip(batches, each(batches), strict=True):
            for index, answer in zip(chosen, found, strict=True):
                answers[index] = answer
    return answers


def _check(sources: Sequence[Sequence[int]], beam: int, alpha: float, extra: int, batch_sentences: int) -> None:
    if beam < 1 or batch_sentences < 1:
        raise ValueError(f"beam and batch_sentences must be at least 1, not {beam} and {batch_sentences}")
    if alpha < 0 or extra < 0:
        raise ValueError(f"alpha and extra must not be negative, not {alpha} and {extra}")
    for number, ids in enumerate(sources):
        if len(ids) == 0:
            raise ValueError(f"source sentence {number} has no ids: each needs at least its EOS")


def _greedy(model: nn.Module, sources: Sequence[Sequence[int]], extra: int) -> list[list[int]]:
    """Translations of one batch by greedy search."""
    numbers, limits, cache = _begin(model, sources, extra)
    answers: list[list[int]] = [[] for _ in sources]
    done = torch.zeros_like(numbers, dtype=torch.bool)
    previous = torch.full_like(numbers, PAD)
    tokens = previous.new_empty(len(numbers), 0)
    while len(numbers):
        values, previous = model.step(previous, tokens.shape[1], cache).max(dim=1)
        _refuse_nan(values)
        # A sentence that is done may stay in the batch; its further ids are replaced by EOS.
        tokens = torch.cat([tokens, previous.masked_fill(done, EOS)[:, None]], dim=1)
        done |= (previous == EOS) | (tokens.shape[1] >= limits)
        if _worth_dropping(done):
            _record(answers, numbers[done], tokens[done])
            stay = (~done).nonzero()[:, 0]
            numbers, limits, done, previous, tokens = (x[stay] for x in (numbers, limits, done, previous, tokens))
            _select(cache, stay, stay)
    return answers


def _beam_search(
    model: nn.Module, sources: Sequence[Sequence[int]], beam: int, alpha: float, extra: int
) -> list[list[int]]:
    """Translations of one batch by tensor2tensor's beam search.

    Each step takes the 2 * beam most probable continuations of a sentence. Those that end in EOS are finished. The
    `beam` best of the others stay alive. tensor2tensor keeps `beam` finished hypotheses and returns the best; only that
    one is kept here. A sentence is done when its best finished score is above the bound of its best alive hypothesis:
    the log probability so far, which can only fall, divided by the penalty at full length.
    """
    numbers, limits, cache = _begin(model, sources, extra)
    answers: list[list[int]] = [[] for _ in sources]
    done = torch.zeros_like(numbers, dtype=torch.bool)
    find_best = getattr(model, "best", best_of)
    full_penalty = ((5 + limits.double()) / 6) ** alpha
    best = torch.full_like(full_penalty, -torch.inf)
    # Before the first id, the hypotheses of a sentence are equal, so one is enough.
    previous = torch.full_like(numbers, PAD)[:, None]  # [sentences, width], as are the log probabilities
    total = torch.zeros_like(previous, dtype=torch.float)
    alive = previous.new_empty(*previous.shape, 0)  # [sentences, width, ids so far]
    while len(numbers):
        length, width = alive.shape[2] + 1, alive.shape[1]
        logits = model.step(previous.flatten(), length - 1, cache)
        values, places, norm = find_best(logits, 2 * beam)  # no row can give more of the best than these
        scores = values - norm + total.view(-1, 1)
        values, chosen = sorted_top(scores.reshape(len(numbers), -1), 2 * beam)
        parents, ids = chosen // places.shape[1], places.reshape(len(numbers), -1).gather(1, chosen)
        grown = torch.cat([_pick(alive, parents), ids[:, :, None]], dim=2)
        ending = ids == EOS

        score, which = values.masked_fill(~ending, -torch.inf).max(dim=1)
        score = score / ((5 + length) / 6) ** alpha
        better = (score > best) & ~done
        best = torch.where(better, score.double(), best)
        _record(answers, numbers[better], grown[better, which[better]])

        # The stable sort keeps the alive continuations in order of probability.
        kept = ending.to(torch.uint8).argsort(dim=1, stable=True)[:, :beam]
        total = values.masked_fill(ending, -torch.inf).gather(1, kept)
        previous, alive = ids.gather(1, kept), _pick(grown, kept)
        ended = ~done & ((best > total[:, 0] / full_penalty) | (length >= limits))
        done |= ended
        unfinished = ended & best.isneginf()
        _record(answers, numbers[unfinished], alive[unfinished, 0])

        first_rows = torch.arange(0, len(numbers) * width, width, device=numbers.device)[:, None]
        own = first_rows + parents.gather(1, kept)
        shared = first_rows + torch.arange(kept.shape[1], device=numbers.device).clamp(max=width - 1)
        if _worth_dropping(done):
            stay = (~done).nonzero()[:, 0]
            numbers, limits, done, full_penalty, best = (x[stay] for x in (numbers, limits, done, full_penalty, best))
            previous, total, alive, own, shared = (x[stay] for x in (previous, total, alive, own, shared))
        _select(cache, own.flatten(), shared.flatten())
    return answers


def _begin(model: nn.Module, sources: Sequence[Sequence[int]], extra: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The index of each sentence [B], the maximum length of its translation [B], and the model's cache."""
    device = next(model.parameters()).device
    longest = max(len(ids) for ids in sources)
    source = torch.tensor([list(ids) + [PAD] * (longest - len(ids)) for ids in sources], device=device)
    limits = torch.tensor([len(ids) + extra for ids in sources], device=device)
    return torch.arange(len(sources), device=device), limits, model.start(model.encode(source), source)


def best_of(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of logits [N, V]: the `count` largest, their places, and logsumexp, each [N, count or 1]."""
    return *sorted_top(logits, count), logits.logsumexp(dim=1, keepdim=True)


def sorted_top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row and their places, descending; of equal values, the lower place is first.

    `torch.topk` does not define the order of equal values. A heavily pruned model has equal logits: those of the ids
    whose embeddings are all zero. One value more than `count` shows whether the last value ties with the next. Raises
    FloatingPointError for NaN.
    """
    count = min(count, scores.shape[1])
    values, places = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    _refuse_nan(values[:, 0])
    tied = ((values[:, 1:] == values[:, :-1]) & ~values[:, 1:].isneginf()).any(dim=1).nonzero()[:, 0]
    values, places = values[:, :count], places[:, :count]
    if len(tied):
        row, edge = scores[tied], values[tied, -1:]
        above, equal = row > edge, row == edge
        chosen = above | (equal & (equal.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))
        ascending = chosen.nonzero()[:, 1].view(-1, count)
        sorted_values, rank = row.gather(1, ascending).sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = sorted_values, ascending.gather(1, rank)
    return values, places


def _pick(sequences: Tensor, which: Tensor) -> Tensor:
    """sequences [B, N, L] in the order which [B, K] -> [B, K, L]."""
    return sequences.gather(1, which[:, :, None].expand(-1, -1, sequences.shape[2]))


def _select(cache, own: Tensor, shared: Tensor) -> None:
    """Keep the rows `own` of the cache's `self_*` entries and the rows `shared` of all others, in place."""
    if not isinstance(cache, dict):
        cache.select(own)
        return
    size = next(iter(cache.values())).shape[0]
    everything = torch.arange(size, device=own.device)
    keep_own, keep_shared = torch.equal(own, everything), torch.equal(shared, everything)
    for name, value in cache.items():
        if name.startswith("self_"):
            cache[name] = value if keep_own else value.index_select(0, own)
        else:
            cache[name] = value if keep_shared else value.index_select(0, shared)


def _worth_dropping(done: Tensor) -> bool:
    """Whether so many sentences are done that a smaller batch saves more time than copying the cache costs."""
    return 8 * int(done.sum()) >= len(done)


def _record(answers: list[list[int]], numbers: Tensor, sequences: Tensor) -> None:
    """Write the sequences [K, L], each up to its first EOS, as the answers of the sentences `numbers` [K]."""
    for number, ids in zip(numbers.tolist(), sequences.tolist(), strict=True):
        answers[number] = ids[: ids.index(EOS)] if EOS in ids else ids


def _refuse_nan(values: Tensor) -> None:
    if values.isnan().any():
        raise FloatingPointError(DIVERGED)
