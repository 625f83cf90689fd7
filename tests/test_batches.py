"""Batches: no pair is lost or seen twice, a row says which words belong together, and a stream goes on where it was."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_lib.base import settings as params
from slt_lib.base.errors import InputError
from slt_lib.data import corpora
from slt_lib.data.batches import WAITING, Batches, Position
from slt_lib.data.vocabulary import Encoded, Vocabulary
from slt_lib.transformer import EOS, PAD


def encoded(sentences):
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sentences])]).astype(np.int64)
    return Encoded(np.concatenate(sentences).astype(np.int32), offsets)


def made(count, longest=14, seed=0):
    """Pairs of any lengths; the first word on both sides is the pair's number + 10, so that it can be found again."""
    draw = np.random.default_rng(seed)
    sides = []
    for side in (0, 1):
        lengths = draw.integers(1, longest, size=count)
        sides.append(encoded([[i + 10, *draw.integers(2, 10, size=n - 1 + side), EOS] for i, n in enumerate(lengths)]))
    return sides


def pairs_of(batch):
    """Numbers of the pairs of a batch, from the first word of each target segment."""
    first = (batch.target_position == 0) & (batch.target_segment > 0)
    return (batch.target[first] - 10).tolist()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 120), st.sampled_from([8, 16, 24]), st.sampled_from([16, 24, 40]), st.booleans(), st.integers(0, 99)
)
def test_every_pair_once_an_epoch(count, rows, length, packed, seed):
    source, target = made(count, seed=seed)
    stream = Batches(source, target, rows, length, seed, packed=packed)
    seen = Counter()
    while stream.position.epoch < 3:
        seen.update(pairs_of(next(stream)))
        position = stream.position
        # What was handed out and what waits is exactly what the epochs' orders gave so far.
        drawn = Counter({pair: position.epoch for pair in range(count)} if position.epoch else {})
        drawn.update(stream.order(position.epoch)[: position.offset].tolist())
        assert seen + Counter(position.waiting) == drawn
        assert len(position.waiting) <= WAITING
    assert all(sorted(stream.order(epoch)) == list(range(count)) for epoch in range(3))


@pytest.mark.parametrize("packed", [True, False])
def test_a_row_says_which_words_belong_together(packed):
    source, target = made(60)
    stream = Batches(source, target, 8, 32, seed=1, packed=packed)
    for batch in (next(stream) for _ in range(12)):
        assert all(part.shape == (8, 32) and part.dtype == torch.long for part in batch)
        for r in range(8):
            count = int(batch.source_segment[r].max())
            assert count >= 1 and (packed or count == 1)
            for segment in range(1, count + 1):
                there, here = batch.source_segment[r] == segment, batch.target_segment[r] == segment
                pair = int(batch.target[r, here][0]) - 10
                assert batch.source[r, there].tolist() == source[pair].tolist()
                words = batch.target[r, here].tolist()
                assert words == target[pair].tolist()
                assert batch.shifted[r, here].tolist() == [PAD, *words[:-1]]  # no word sees the pair before its own
                assert batch.source_position[r, there].tolist() == list(range(len(source[pair])))
                assert batch.target_position[r, here].tolist() == list(range(len(words)))
        for ids, segment in ((batch.source, batch.source_segment), (batch.target, batch.target_segment)):
            assert torch.equal(ids == PAD, segment == 0)
        assert batch.tokens == int((batch.target_segment > 0).sum())


def test_a_stream_goes_on_where_it_was():
    source, target = made(90)
    unbroken = Batches(source, target, 8, 24, seed=3, noise="2")
    places, batches = [], []
    for _ in range(11):  # two epochs and a bit
        batches.append(next(unbroken))
        places.append(unbroken.position)
    assert places[-1].epoch >= 2 and places[-1].waiting
    for number, where in enumerate(places):
        resumed = Batches(source, target, 8, 24, seed=3, noise="2")
        # by way of numbers, as a resume file holds it
        resumed.position = Position(where.epoch, where.offset, tuple(list(where.waiting)))
        assert all(same(next(resumed), batch) for batch in batches[number + 1 :])


def test_order_depends_on_seed_and_noise():
    source, target = made(90)
    first = {key: next(Batches(source, target, 8, 24, *key)) for key in ((1, "0"), (2, "0"), (1, "1"), (1, "0+1"))}
    assert same(first[1, "0"], next(Batches(source, target, 8, 24, 1, "0")))
    assert not same(first[1, "0"], first[2, "0"]) and not same(first[1, "0"], first[1, "1"])
    assert len({part.shape for batch in first.values() for part in batch}) == 1
    order = Batches(source, target, 8, 24, 1)
    assert order.order(0).tolist() != order.order(1).tolist()


def test_long_pairs_are_left_out_and_counted():
    source = encoded([[10, EOS], [11, *[3] * 20, EOS], [12, EOS]])
    target = encoded([[10, EOS], [11, EOS], [12, *[3] * 40, EOS]])
    stream = Batches(source, target, 8, 16, seed=1)
    assert stream.dropped == 2
    assert set(pairs_of(next(stream))) == {0}
    with pytest.raises(InputError, match=r"^batch: no training pair fits into length 8; raise batch\.length$"):
        Batches(encoded([[3] * 9]), encoded([[3, EOS]]), 8, 8, seed=1)


def test_a_pair_as_long_as_a_row_fits():
    whole = encoded([[10, *[3] * 14, EOS]])
    batch = next(Batches(whole, whole, 8, 16, seed=1))
    assert batch.tokens == 8 * 16


@pytest.mark.parametrize("pair", ["en-de", "en-fr"])
def test_little_padding_on_multi30k(data_root, pair):
    if not (data_root / "multi30k").is_dir():
        pytest.skip("no Multi30k there")
    study = params.load("multi30k")
    split = corpora.multi30k(pair).train
    source, target = split.source[:6000], split.target[:6000]
    vocabulary = Vocabulary.build([*source, *target], study.vocabulary)
    shape = study.training.batch
    stream = Batches(vocabulary.encode(source), vocabulary.encode(target), shape.rows, shape.length, seed=1)
    assert stream.dropped < 0.002 * len(source)
    batches = [next(stream) for _ in range(60)]
    # Both sides together: French is longer than English, so an English side alone may have a little more.
    share = np.mean([(ids == PAD).float().mean().item() for batch in batches for ids in (batch.source, batch.target)])
    assert share < 0.15
