"""Batches of encoded sentence pairs: all of one shape, seeded and resumable.

As in T2T's packed problems, a row holds several pairs, which segment ids keep apart (FACTS.md section 1). On Multi30k
packing leaves a few percent of padding. All steps have one shape, so that tickets can step together.
"""

from dataclasses import dataclass

import numpy as np
import torch

from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream
from slt_lib.data.vocabulary import Encoded
from slt_lib.transformer import Batch

WAITING = 16  # pairs that may be set aside while a batch is filled; T2T looks ahead by 10


@dataclass
class Position:
    """Position in a stream of batches. The `waiting` pairs did not fit; the next batch starts with them."""

    epoch: int = 0
    offset: int = 0
    waiting: tuple[int, ...] = ()


class Batches:
    """An endless stream of batches [rows, length]. Each epoch has its own order, which depends on `seed` and `noise`.

    If `packed` is false, a row holds one pair. Pairs longer than `length` on either side are left out, as in T2T's
    training; `dropped` counts them. Raises InputError if none is left.
    """

    def __init__(
        self, source: Encoded, target: Encoded, rows: int, length: int, seed: int, noise: str = "0", packed=True
    ):
        self.source, self.target, self.rows, self.length, self.packed = source, target, rows, length, packed
        self.seed, self.noise = seed, noise
        usable = np.flatnonzero((source.lengths <= length) & (target.lengths <= length))
        self.usable = usable.astype(np.int32)  # its permutations are the same, in half the memory
        self.dropped = len(source) - len(self.usable)
        if not len(self.usable):
            raise InputError(f"batch: no training pair fits into length {length}; raise batch.length")
        self.position = Position()
        self._order = (-1, None)

    def order(self, epoch: int) -> np.ndarray:
        """The usable pairs in this epoch's order."""
        if self._order[0] != epoch:
            generator = stream(self.seed, "sentences", self.noise, epoch)
            self._order = (epoch, generator.permutation(self.usable))
        return self._order[1]

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        rows, sides = self._fill(), []
        for encoded in (self.source, self.target):
            ids, segment, position = np.zeros((3, self.rows, self.length), dtype=np.int64)
            for row, members in enumerate(rows):
                at = 0
                for number, pair in enumerate(members, start=1):
                    sentence = encoded[pair]
                    part = row, slice(at, at + len(sentence))
                    ids[part], segment[part], position[part] = sentence, number, np.arange(len(sentence))
                    at += len(sentence)
            sides += [ids, segment, position]
        ids, _, position = sides[3:]
        shifted = np.where(position == 0, 0, np.roll(ids, 1, axis=1))  # a zero vector opens each segment
        return Batch(*map(torch.from_numpy, (*sides, shifted)))

    def _fill(self) -> list[list[int]]:
        """Put each pair into the first row that has room, in order. Stop when WAITING pairs are set aside."""
        rows = [[] for _ in range(self.rows)]
        free = np.full((2, self.rows), self.length)
        epoch, offset = self.position.epoch, self.position.offset
        waiting, passed = list(self.position.waiting), []
        while True:
            if waiting:
                pair = waiting.pop(0)
            else:
                if offset == len(self.usable):
                    epoch, offset = epoch + 1, 0
                pair = int(self.order(epoch)[offset])
                offset += 1
            need = np.array([self.source.lengths[pair], self.target.lengths[pair]])
            fits = (free >= need[:, None]).all(axis=0)
            row = int(fits.argmax())
            if fits[row]:
                rows[row].append(pair)
                free[:, row] = free[:, row] - need if self.packed else 0
            else:
                passed.append(pair)
            if not (self.packed or free.any()) or len(passed) + len(waiting) >= WAITING:
                self.position = Position(epoch, offset, tuple(passed + waiting))
                return rows
