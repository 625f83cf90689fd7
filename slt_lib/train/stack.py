"""The weights of many tickets on one device, the step that trains them all, and their greedy translations.

Weights are stacked along a leading axis, and the model's own code runs under `torch.func.vmap`. Each ticket has its own
mask, sentences, dropout and optimizer statistics; no number of one reaches another. On CUDA the whole step is captured
as a graph, so that it is launched at once.
"""

import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from slt_lib.base import devices
from slt_lib.base.settings import Training
from slt_lib.evaluation.decoding import EOS, PAD
from slt_lib.train.loop import DEV_BATCH
from slt_lib.train.state import TrainState
from slt_lib.train.step import Parameters, dropout_plan, new_model, new_optimizer, set_rate, step
from slt_lib.transformer import Batch, Transformer, prunable, smoothed_cross_entropy

EAGER = 3  # steps before the graph is captured: they allocate optimizer state and workspaces of libraries
MOST_ROWS = 32768  # sentences times tickets decoded at once on CUDA, at most


class _Method(nn.Module):
    """A model whose methods `functional_call` can call."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


class Stack:
    """Tickets that train together, each with the sentences and dropout of the stream `of_stream` gives it.

    Parameters of one shape form a family [names, tickets, *shape], so that the optimizer updates a few large tensors
    instead of many small ones. `families`: key -> names.
    """

    def __init__(self, training: Training, vocabulary: int, states: Sequence[TrainState], of_stream: Sequence[int]):
        self.training, self.device = training, devices.device()
        self.model = new_model(training, vocabulary).to(self.device).requires_grad_(False)
        named = dict(self.model.named_parameters())
        masked = prunable(named) if any(state.mask is not None or state.start.gradual for state in states) else {}
        masked = {*masked}.union(*(state.mask or () for state in states))  # biases of removed units
        self.families = {}
        for name, parameter in named.items():
            self.families.setdefault((tuple(parameter.shape), name in masked), []).append(name)
        weights = {
            key: self._stacked([[state.weights[name] for state in states] for name in names]).requires_grad_()
            for key, names in self.families.items()
        }
        factors = {key: torch.ones_like(weights[key], dtype=torch.bool) for key in weights if key[1]}
        optimizer = new_optimizer(training, states[0].start.optimizer, weights.values(), stacked=2)
        self.parameters = Parameters(weights, optimizer, factors)
        for key, names in self.families.items() if states[0].optimizer else ():
            for slot, value in states[0].optimizer[names[0]].items():
                if value.dim():
                    value = self._stacked([[state.optimizer[name][slot] for state in states] for name in names])
                else:  # the number of Adam's steps is the same for all
                    value = value.to(self.device, copy=True)
                optimizer.state[weights[key]][slot] = value
        for i, state in enumerate(states):
            if state.mask is not None:
                self.set_mask(i, state.mask)
        self._allocate_inputs(of_stream)
        self.graph, self.steps, self.losses = None, 0, None

    def _stacked(self, tensors: list[list[Tensor]]) -> Tensor:
        """[names, tickets, ...] on the device and of the model's type."""
        stacked = torch.stack([torch.stack(of_tickets) for of_tickets in tensors])
        return stacked.to(self.device, self.model.embedding.dtype)

    def _allocate_inputs(self, of_stream: Sequence[int]) -> None:
        """The tensors that a step reads; a graph finds them at the same address in each replay."""
        batch, streams = self.training.batch, max(of_stream) + 1
        self.sites, self.rates = dropout_plan(self.training, self.model.shape)
        self.dropped = {site: where for site, where in self.sites.items() if self.rates[where[0]] > 0}
        self.counts = [math.prod(size) for _, size in self.dropped.values()]
        self.of_stream = torch.tensor(of_stream, device=self.device)
        self.ids = torch.zeros(7, streams, batch.rows, batch.length, dtype=torch.long, device=self.device)
        self.bits = torch.zeros(streams, sum(self.counts), dtype=torch.bool, device=self.device)

    # Training ------------------------------------------------------------

    def step(self, ids: Tensor, bits: Tensor, number: int) -> Tensor:
        """Step `number`, from 0, of all tickets; returns their losses [tickets] without waiting for the device.

        `ids` [7, streams, rows, length]: one batch per stream. `bits` [streams, entries]: where dropout keeps an entry.
        """
        self.ids.copy_(ids, non_blocking=True)
        self.bits.copy_(bits, non_blocking=True)
        set_rate(self.parameters.optimizer, self.training, number)
        self.steps += 1
        if self.device.type != "cuda" or self.graph is False:  # False: it could not be captured
            return step(self.parameters, self._backward)
        if self.steps <= EAGER:
            return self._on_side_stream()
        if self.graph is None and not self._capture():
            return step(self.parameters, self._backward)
        self.graph.replay()
        return self.losses.clone()

    def _on_side_stream(self) -> Tensor:
        """A step on a stream of its own, which PyTorch asks for before a capture."""
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            losses = step(self.parameters, self._backward)
        here.wait_stream(side)
        losses.record_stream(here)
        return losses

    def _capture(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads pin memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.losses = step(self.parameters, self._backward)
            self.graph = graph
        except RuntimeError as error:
            self.graph = False
            torch.cuda.synchronize()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"lockstep: no CUDA graph, steps are launched one by one ({reason})", file=sys.stderr)
        return bool(self.graph)

    def _backward(self) -> Tensor:
        """Leave the gradients of all tickets in the families; returns the losses [tickets]."""
        batch = Batch(*self.ids.index_select(1, self.of_stream).unbind(0))
        bits = self.bits.index_select(0, self.of_stream).split(self.counts, dim=1)
        drop = {
            site: kept.view(-1, *size) * (1 / (1 - self.rates[kind]))
            for (site, (kind, size)), kept in zip(self.dropped.items(), bits, strict=True)
        }
        losses = torch.vmap(self._loss)(self.named(), batch, drop)
        weights = list(self.parameters.weights.values())
        for weight, gradient in zip(weights, torch.autograd.grad(losses.sum(), weights), strict=True):
            weight.grad = gradient
        return losses.detach()

    def _loss(self, weights: dict[str, Tensor], batch: Batch, drop: dict[str, Tensor]) -> Tensor:
        """The loss of one ticket, in operations that `vmap` supports."""
        low = self.training.precision == "bf16"
        if low:  # under vmap a bias is added after the product, where autocast does not see it
            weights = {name: w.bfloat16() if name.endswith("_bias") else w for name, w in weights.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            hidden = functional_call(self.model, weights, (batch, drop))
        dtype = torch.bfloat16 if low else hidden.dtype
        logits = hidden.flatten(0, 1).to(dtype) @ weights["embedding"].to(dtype).t()
        return smoothed_cross_entropy(logits, batch.target.flatten(), self.training.label_smoothing)

    # Tickets of the stack ------------------------------------------------------------

    def named(self) -> dict[str, Tensor]:
        """Views of the weights by name, [tickets, *shape]."""
        weights = self.parameters.weights
        return {name: w for key, names in self.families.items() for name, w in zip(names, weights[key], strict=True)}

    def weights(self, i: int) -> dict[str, Tensor]:
        """Views of the weights of ticket `i`."""
        return {name: weight.detach()[i] for name, weight in self.named().items()}

    @torch.no_grad()
    def set_mask(self, i: int, mask: Mapping[str, Tensor]) -> None:
        """Prune ticket `i` by `mask` from now on."""
        for key, factor in self.parameters.factors.items():
            for j, name in enumerate(self.families[key]):
                if name not in mask:
                    continue
                factor[j, i].copy_(mask[name])
                self.parameters.weights[key][j, i].mul_(factor[j, i])

    def solo(self, i: int) -> Transformer:
        """The model with the weights of ticket `i`, until the next call."""
        self.model.load_state_dict(self.weights(i))
        return self.model

    def on_cpu(self) -> list[tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]]:
        """Weights and optimizer statistics of each ticket on the CPU, as in `TrainState`; valid until the next step."""
        found = [({}, {}) for _ in self.of_stream]
        for key, names in self.families.items():
            family = self.parameters.weights[key]
            slots = {slot: value.cpu() for slot, value in self.parameters.optimizer.state[family].items()}
            family = family.detach().cpu()
            for i, (weights, optimizer) in enumerate(found):
                for j, name in enumerate(names):
                    weights[name] = family[j, i]
                    optimizer[name] = {s: v[j, i] if v.dim() else v.clone() for s, v in slots.items()}
        return found

    # Decoding ------------------------------------------------------------

    @torch.no_grad()
    def translate(self, sources: Sequence[Sequence[int]], extra: int) -> list[list[list[int]] | None]:
        """Greedy translations by each ticket, as `decoding.translate` gives them; None if its logits hold NaN."""
        lost = torch.zeros_like(self.of_stream, dtype=torch.bool)
        source = pad_sequence([torch.tensor(ids) for ids in sources], batch_first=True, padding_value=PAD)
        source = source.to(self.device)
        limits = (source != PAD).sum(1) + extra
        # one column more than the longest translation: each ends in EOS
        found = torch.full((len(lost), len(source), source.shape[1] + extra + 1), EOS, device=self.device)
        for numbers in limits.argsort(descending=True, stable=True).split(self._rows(found.shape[2])):
            self._translate(source, limits, numbers, found, lost)
        answers = [[ids[: ids.index(EOS)] for ids in sentences] for sentences in found.tolist()]
        return [None if gone else answer for gone, answer in zip(lost.tolist(), answers, strict=True)]

    def _rows(self, length: int) -> int:
        """How many sentences are decoded at once, for translations of at most `length` ids."""
        if self.device.type != "cuda":
            return DEV_BATCH
        shape, count = self.model.shape, len(self.of_stream)
        cached = 4 * shape.layers * shape.hidden * length  # keys and values of both attentions
        bytes_per_row = 4 * (3 * cached + 4 * shape.vocabulary)  # a grown cache is made next to the one before
        most = devices.free_memory(self.device) // 2 // bytes_per_row // count
        return min(max(1, most), MOST_ROWS // count + 1)

    def _translate(self, source: Tensor, limits: Tensor, numbers: Tensor, found: Tensor, lost: Tensor) -> None:
        """Translate the sentences `numbers` of `source`, each up to its limit, into `found` [tickets, sentences, ids].

        Marks a ticket whose logits hold NaN in `lost` [tickets]. A sentence leaves the batch when all have ended it.
        """
        model, weights = _Method(self.model), {f"model.{name}": weight for name, weight in self.named().items()}
        source, limits = source[numbers], limits[numbers]
        source = source[:, : int((source != PAD).sum(1).max())]
        done = lost[:, None].repeat(1, len(numbers))
        previous = torch.full_like(done, PAD, dtype=torch.long)

        def begin(weights):
            memory = functional_call(model, weights, ("encode", source))
            return functional_call(model, weights, ("start", memory, source))

        def advance(weights, previous, cache):
            cache = dict(cache)
            return functional_call(model, weights, ("step", previous, position, cache)), cache

        cache = torch.vmap(begin)(weights)
        for position in range(int(limits.max())):
            logits, cache = torch.vmap(advance)(weights, previous, cache)
            values, previous = logits.max(dim=2)
            lost |= values.isnan().any(1)
            found[:, numbers, position] = previous.masked_fill(done, EOS)
            done |= (previous == EOS) | (position + 1 >= limits) | lost[:, None]
            ended = done.all(0)
            if 8 * int(ended.sum()) >= len(ended):  # a smaller batch repays the copying of the cache
                stay = (~ended).nonzero()[:, 0]
                if not len(stay):
                    return
                numbers, limits, done, previous = numbers[stay], limits[stay], done[:, stay], previous[:, stay]
                cache = {name: value.index_select(1, stay) for name, value in cache.items()}
