"""Beam search against a slow search in plain Python, on a small random model in float64."""

import itertools
import math

import pytest
import torch
from torch import nn

from slt_lib.evaluation.decoding import EOS, PAD, _beam_search, _greedy, sorted_top, translate
from slt_lib.transformer import Batch, Shape, Transformer


class RandomModel(nn.Module):
    """Logits are a random function of the source and of every id said so far, in their order.

    So a hypothesis that got the cache of another would show. `peak` scales the logits, `ending` raises EOS's.
    """

    def __init__(self, vocabulary=7, hidden=6, seed=0, peak=2.0, ending=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(vocabulary, hidden, generator=generator).double())
        self.mix = nn.Parameter(torch.randn(hidden, hidden, generator=generator).double())
        self.peak, self.ending, self.rows = peak, ending, []

    def encode(self, source):
        weight = (source != PAD) / (torch.arange(source.shape[1]) + 1.0)
        return self.embedding[source] * weight[:, :, None]

    def start(self, memory, source):
        empty = memory[:, None, :0]
        return {"cross_k.0": memory[:, None], "cross_bias": (source == PAD)[:, None], "self_k.0": empty}

    def step(self, previous, position, cache):
        assert position == cache["self_k.0"].shape[2]
        self.rows.append(len(previous))
        said = self.embedding[previous] * (previous != PAD)[:, None]
        cache["self_k.0"] = torch.cat([cache["self_k.0"], said[:, None, None]], dim=2)
        order = torch.arange(1, position + 2, dtype=torch.double).sqrt()[:, None]
        source = (cache["cross_k.0"] * ~cache["cross_bias"][..., None]).sum((1, 2))
        state = ((cache["self_k.0"][:, 0] * order).sum(1) + source) @ self.mix
        logits = self.peak * torch.sin(3 * state) @ self.embedding.T
        logits[:, EOS] += self.ending
        return logits


def log_probabilities(model, source, prefix):
    """After `prefix`, computed from nothing: no cache and no batch to go wrong."""
    ids = torch.tensor([source])
    cache = model.start(model.encode(ids), ids)
    for position, previous in enumerate([PAD, *prefix]):
        logits = model.step(torch.tensor([previous]), position, cache)
    return logits.log_softmax(dim=1)[0].tolist()


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def slow_beam_search(model, source, beam, alpha, extra):
    """tensor2tensor's search with its whole set of finished hypotheses, a sentence at a time."""
    limit = len(source) + extra
    alive, finished = [(0.0, [])], []
    for length in range(1, limit + 1):
        grown = []
        for logp, prefix in alive:
            for token, value in enumerate(log_probabilities(model, source, prefix)):
                grown.append((logp + value, [*prefix, token]))
        grown = sorted(grown, key=lambda x: -x[0])[: 2 * beam]
        finished += [(logp / penalty(length, alpha), ids) for logp, ids in grown if ids[-1] == EOS]
        finished = sorted(finished, key=lambda x: -x[0])[:beam]
        alive = [x for x in grown if x[1][-1] != EOS][:beam]
        # The strictest of tensor2tensor's rules: even the worst of a full set of finished ones can't be beaten.
        if len(finished) == beam and finished[-1][0] > alive[0][0] / penalty(limit, alpha):
            break
    return finished[0][1][:-1] if finished else alive[0][1]


def slow_greedy(model, source, extra):
    prefix = []
    while len(prefix) < len(source) + extra:
        values = log_probabilities(model, source, prefix)
        token = values.index(max(values))
        if token == EOS:
            break
        prefix.append(token)
    return prefix


def some_sources(count, vocabulary=7, longest=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[*torch.randint(2, vocabulary, (n,), generator=generator).tolist(), EOS] for n in lengths]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("beam", [2, 4])
@pytest.mark.parametrize("peak", [0.3, 2.0])
def test_beam_search_is_the_slow_search(beam, alpha, peak):
    model, sources = RandomModel(peak=peak, ending=-1.5), some_sources(40)
    answers = translate(model, sources, beam=beam, alpha=alpha, extra=3, batch_sentences=32)
    assert answers == [slow_beam_search(model, source, beam, alpha, extra=3) for source in sources]
    # A model that is unsure of everything says nothing; one that is not must give the search something to choose.
    assert peak < 1 or len({len(answer) for answer in answers}) > 3


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_wide_beam_finds_the_best_of_all(alpha):
    model, source, limit = RandomModel(vocabulary=4), [2, EOS], 4

    def score(ids):
        values = [log_probabilities(model, source, ids[:i])[token] for i, token in enumerate(ids)]
        return math.fsum(values) / penalty(len(ids), alpha)

    bodies = [list(x) for n in range(limit) for x in itertools.product((0, 2, 3), repeat=n)]
    best = max(bodies, key=lambda body: score([*body, EOS]))
    assert translate(model, [source], beam=100, alpha=alpha, extra=limit - len(source)) == [best]


def test_beam_1_is_greedy():
    model, sources = RandomModel(seed=3), some_sources(20)
    answers = translate(model, sources, beam=1, extra=8, batch_sentences=7)
    assert answers == [slow_greedy(model, source, extra=8) for source in sources]


def test_greedy_is_a_beam_of_one_where_the_model_is_sure():
    # Only there: a beam of one looks at two continuations, and takes an unlikely end before an unending sentence.
    model, sources = RandomModel(seed=3, peak=40.0, ending=60.0), some_sources(40)
    greedy, beam = (_greedy(model, sources, extra=8), _beam_search(model, sources, beam=1, alpha=0.0, extra=8))
    ended = [i for i, source in enumerate(sources) if 0 < len(greedy[i]) < len(source) + 8]
    assert len(ended) >= 10
    assert [greedy[i] for i in ended] == [beam[i] for i in ended]


@pytest.mark.parametrize("beam", [1, 4])
def test_batches_change_nothing(beam):
    model, sources = RandomModel(), some_sources(30)
    alone = [translate(model, [source], beam=beam, extra=5)[0] for source in sources]
    for batch_sentences in (1, 4, 64):
        assert translate(model, sources, beam=beam, extra=5, batch_sentences=batch_sentences) == alone
    assert translate(model, sources[::-1], beam=beam, extra=5) == alone[::-1]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("extra", [0, 4])
def test_longest_translation(beam, extra):
    model, sources = RandomModel(ending=-1e3), some_sources(9)
    answers = translate(model, sources, beam=beam, extra=extra)
    assert [len(answer) for answer in answers] == [len(source) + extra for source in sources]


class LateWinner(RandomModel):
    """Of ids 0 to 2: an end at once is likelier than going on, which is sure to end after three times 2."""

    def step(self, previous, position, cache):
        chances = {0: (0.05, 0.5, 0.45), 3: (1e-6, 1.0, 1e-6)}.get(position, (1e-6, 1e-6, 1.0))
        return torch.tensor(chances).log().expand(len(previous), -1)


def test_search_goes_on_while_a_longer_one_can_win():
    # log(0.5) against log(0.45) / (9 / 6): the bound of the alive one is over the penalty of the full length.
    assert translate(LateWinner(), [[EOS]], beam=2, alpha=1.0, extra=3) == [[2, 2, 2]]
    assert translate(LateWinner(), [[EOS]], beam=2, alpha=0.0, extra=3) == [[]]


def test_nothing_longer_than_allowed_wins():
    # The first sentence is at its limit while the others, too many for it to leave the batch, go on.
    sources = [[EOS], *[[2] * 3 + [EOS]] * 15]
    assert translate(LateWinner(), sources, beam=2, alpha=1.0, extra=1) == [[], *[[2, 2, 2]] * 15]


@pytest.mark.parametrize("beam", [1, 3])
def test_nothing_said(beam):
    assert translate(RandomModel(ending=1e3), some_sources(5), beam=beam) == [[]] * 5


@pytest.mark.parametrize("beam", [1, 3])
def test_finished_sentences_leave_the_batch(beam):
    model, sources = RandomModel(ending=-1e3), [[2] * n + [EOS] for n in range(16)]
    translate(model, sources, beam=beam, extra=0)
    assert model.rows[-1] == beam
    assert sum(model.rows) < 0.65 * 16 * 16 * beam


def test_equal_scores_go_to_the_lower_place():
    scores = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0] * 6])
    for count in range(1, 8):
        values, places = sorted_top(scores, count)
        expected = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, expected.values[:, :count])
        assert torch.equal(places, expected.indices[:, :count])


def test_ties_of_a_whole_search():
    model = RandomModel(peak=0.0)
    assert translate(model, [[2, EOS]], beam=1, extra=1) == [[0, 0, 0]]
    assert translate(model, [[2, EOS]], beam=2, alpha=0.0, extra=1) == [[]]


def whole_forward(model, source, prefix):
    """Logits after `prefix` from the forward pass of training, which keeps no cache."""
    source, shifted = torch.tensor([source]), torch.tensor([[PAD, *prefix]])
    sides = [(torch.ones_like(ids), torch.arange(ids.shape[1])[None]) for ids in (source, shifted)]
    batch = Batch(source, *sides[0], shifted, *sides[1], shifted)
    return model.logits(model(batch))[0, -1]


@torch.no_grad()
def test_transformer_with_its_cache():
    model = Transformer(Shape(vocabulary=40, layers=2, hidden=16, filter=32, heads=4), seed=1).double()
    sources = some_sources(12, vocabulary=40)
    expected = []
    for source in sources:
        expected.append([])
        while len(expected[-1]) < len(source) + 4:
            token = int(whole_forward(model, source, expected[-1]).argmax())
            if token == EOS:
                break
            expected[-1].append(token)
    assert translate(model, sources, beam=1, extra=4, batch_sentences=5) == expected
    beams = [translate(model, sources, extra=4, batch_sentences=size) for size in (1, 5)]
    assert beams[0] == beams[1] != expected


def test_nothing_to_translate():
    assert translate(RandomModel(), []) == []


@pytest.mark.parametrize("options", [{"beam": 0}, {"batch_sentences": 0}, {"alpha": -1.0}, {"extra": -1}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="must"):
        translate(RandomModel(), [[2, EOS]], **options)


def test_source_without_ids():
    with pytest.raises(ValueError, match="sentence 1 has no ids"):
        translate(RandomModel(), [[2, EOS], []])


@pytest.mark.parametrize("beam", [1, 4])
def test_diverged_model(beam):
    model = RandomModel()
    nn.init.constant_(model.mix, math.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        translate(model, some_sources(3), beam=beam)
