"""The same model in a plain PyTorch loop, as in PyTorch's documentation.

torch.nn.Transformer (pre-norm), one embedding for source, target and softmax, padded batches of sentences of similar
length with as many slots as ours, Adam, label-smoothed cross entropy.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_lib.base.settings import Training
from slt_lib.data.vocabulary import Encoded
from slt_lib.transformer import EOS, PAD, positions

POOL = 100  # batches; the sentences of a pool are sorted by length


class Model(nn.Module):
    def __init__(self, training: Training, vocabulary: int):
        super().__init__()
        sizes = training.model
        self.scale = math.sqrt(sizes.hidden)
        self.embedding = nn.Embedding(vocabulary, sizes.hidden, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=sizes.hidden**-0.5)
        self.register_buffer("positions", positions(training.batch.length, sizes.hidden))
        self.dropout = sizes.residual_dropout
        self.transformer = nn.Transformer(
            sizes.hidden,
            sizes.heads,
            sizes.layers,
            sizes.layers,
            sizes.filter,
            sizes.residual_dropout,
            batch_first=True,
            norm_first=True,
        )
        for part in self.transformer.modules():
            if isinstance(part, nn.MultiheadAttention):
                part.dropout = sizes.attention_dropout

    def embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * self.scale + self.positions[: ids.shape[1]]
        return F.dropout(x, self.dropout, self.training)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source [B, S], target [B, T] with EOS at its start -> logits [B, T, V]."""
        padding = source == PAD
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return F.linear(hidden, self.embedding.weight)


def batches(source: Encoded, target: Encoded, slots: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless padded batches of at most `slots` slots on the longer side; sentences are sorted by length within a pool.

    Pairs longer than `length` are left out, as in our batches.
    """
    generator = np.random.default_rng(seed)
    longest = np.maximum(source.lengths, target.lengths)
    usable = np.flatnonzero(longest <= length)
    pool = max(1, POOL * slots // int(longest[usable].mean()))
    while True:
        order = generator.permutation(usable)
        for first in range(0, len(order), pool):
            ready, batch, width = [], [], 0
            for pair in sorted(order[first : first + pool], key=lambda i: longest[i]):
                if batch and max(width, longest[pair]) * (len(batch) + 1) > slots:
                    ready.append(batch)
                    batch, width = [], 0
                batch.append(pair)
                width = max(width, longest[pair])
            ready.append(batch)
            for i in generator.permutation(len(ready)):
                yield tuple(
                    nn.utils.rnn.pad_sequence(
                        [torch.from_numpy(side[pair].astype(np.int64)) for pair in ready[i]],
                        batch_first=True,
                        padding_value=PAD,
                    )
                    for side in (source, target)
                )


def train(
    training: Training, vocabulary: int, source: Encoded, target: Encoded, report: Callable[[int], None], seed: int = 1
) -> None:
    """Train for `training.steps` steps; `report` is called with the number of target tokens of each."""
    torch.manual_seed(seed)
    model = Model(training, vocabulary).train()
    peak, warmup = training.peak_lr.adam, max(1, round(training.warmup * training.steps))
    optimizer = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.9, 0.98), eps=1e-9)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
    )
    shape = training.batch
    stream = batches(source, target, shape.rows * shape.length, shape.length, seed)
    for _ in range(training.steps):
        sentence, wanted = next(stream)
        shifted = F.pad(wanted[:, :-1], (1, 0), value=EOS)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
            logits = model(sentence, shifted)
            loss = F.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=training.label_smoothing
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        report(int((wanted != PAD).sum()))
