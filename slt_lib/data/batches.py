"""Encoded sentence pairs -> batches of one fixed shape, seeded and resumable.

As in T2T's packed problems, a row holds several pairs side by side, kept apart by segment ids (FACTS.md section 1).
Rounding single sentences up to multiples of 8 would leave 17 to 18% padding on Multi30k; packing leaves a few percent
and one shape for all steps, so that tickets can step together.
"""

from dataclasses import dataclass

import numpy as np
import torch

from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream
from slt_lib.data.vocabulary import Encoded
from slt_lib.transformer import Batch

WAITING = 16  # pairs that may be set aside while a batch is filled: T2T looks ahead by 10


@dataclass
class Position:
    """Where a stream of batches stands: `waiting` pairs were passed over and open the next batch."""

    epoch: int = 0
    offset: int = 0
    waiting: tuple[int, ...] = ()


class Batches:
    """An endless stream of batches [rows, length], each epoch in an order of its own.

    The order depends on `seed` and `noise` (`train.step.noise_of`). With `packed` false a row holds one pair.
    Pairs longer than `length` on either side are left out (`dropped` counts them), as T2T does in training.
    Raises InputError where none is left.
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
        rows = self._fill()
        width = (self.rows, self.length)
        sides = []
        for encoded in (self.source, self.target):
            ids, segment, position = (np.zeros(width, dtype=np.int64) for _ in range(3))
            for r, members in enumerate(rows):
                at = 0
                for number, pair in enumerate(members, start=1):
                    sentence = encoded[pair]
                    part = slice(at, at + len(sentence))
                    ids[r, part], segment[r, part], position[r, part] = sentence, number, np.arange(len(sentence))
                    at = part.stop
            sides.append((ids, segment, position))
        ids, segment, position = sides[1]
        shifted = np.zeros_like(ids)
        shifted[:, 1:] = ids[:, :-1]
        shifted[position == 0] = 0  # a zero vector opens each segment
        return Batch(*map(torch.from_numpy, (*sides[0], *sides[1], shifted)))

    def _fill(self) -> list[list[int]]:
        """First fit in order; stops when a pair that fits nowhere would be one too many to set aside."""
        rows = [[] for _ in range(self.rows)]
        free = np.full((2, self.rows), self.length)
        epoch, offset, passed = self.position.epoch, self.position.offset, []
        waiting = list(self.position.waiting)
        while True:
            if waiting:
                pair = waiting.pop(0)
            else:
                if offset == len(self.usable):
                    epoch, offset = epoch + 1, 0
                pair = int(self.order(epoch)[offset])
                offset += 1
            need = self.source.lengths[pair], self.target.lengths[pair]
            fits = (free[0] >= need[0]) & (free[1] >= need[1])
            row = int(fits.argmax())
            if fits[row]:
                rows[row].append(pair)
                free[0, row] -= need[0]
                free[1, row] -= need[1]
                if not self.packed:
                    free[:, row] = 0
            else:
                passed.append(pair)
            if (not self.packed and not free.any()) or len(passed) + len(waiting) >= WAITING:
                self.position = Position(epoch, offset, tuple(passed + waiting))
                return rows
