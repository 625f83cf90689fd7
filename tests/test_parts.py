"""Whole heads and feed-forward units as operations of the algebra, global pruning, and other criteria."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_lib import masks, parts
from slt_lib.base.errors import InputError
from slt_lib.base.store import RESUME
from slt_lib.evaluation import decoding
from slt_lib.study import operations, results
from slt_lib.study.scores import magnitudes, memory_mib
from slt_lib.train.checkpoint import Job
from slt_lib.transformer import Shape, Transformer, prunable, theta_0

HEADS = ("decoder.0.cross_attention.1", "encoder.0.self_attention.0")
UNITS = {"encoder.0.feed_forward": [0, 5, 31], "decoder.0.feed_forward": [7]}
SHAPE = Shape(40, 2, 16, 24, 4)
EVERY = parts.heads(2, 4)


def size(mask):
    return sum(int((~kept).sum()) for kept in prunable(mask).values())


@pytest.fixture(scope="module")
def dense(session_study):
    return session_study.train([session_study.ticket(1)])[0]


@pytest.fixture(scope="module")
def structured(session_study, dense):
    """theta_t under a mask without two heads and four units, trained."""
    ticket = dense.rewind(at=0.25).prune_heads(heads=HEADS).prune_feed_forward(units=UNITS)
    return session_study.train([ticket])[0]


# Masks ------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(EVERY)),
    st.dictionaries(st.sampled_from([*parts.units(2, 24)]), st.sets(st.integers(0, 23), min_size=1)),
)
def test_a_mask_names_its_removed_parts_and_has_exactly_their_size(heads, units):
    matrices = prunable(theta_0(Transformer(SHAPE), 1))
    mask = parts.mask(matrices, 4, heads, units)
    gone, gone_units = parts.removed(mask, 4)
    assert set(gone) == heads
    assert gone_units == {layer: sorted(numbers) for layer, numbers in units.items()}
    number = sum(map(len, units.values()))
    assert size(mask) == parts.size(16, 4, len(heads), number) == 16 * 16 * len(heads) + 2 * 16 * number
    biases = {name: kept for name, kept in mask.items() if kept.dim() == 1}
    assert sum(int((~kept).sum()) for kept in biases.values()) == number


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_global_mask_prunes_exactly_the_lowest_of_all(data):
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    weights = {name: torch.randn(rows, 5, generator=random).round(decimals=1) for name, rows in [("a", 3), ("b", 8)]}
    first, second = sorted(data.draw(st.lists(st.integers(0, 55), min_size=2, max_size=2)))
    mask = masks.global_mask(weights, first / 55)
    assert sum(int((~kept).sum()) for kept in mask.values()) == first
    kept, gone = (torch.cat([weights[n][m[n]] for n in m]) for m in (mask, {n: ~k for n, k in mask.items()}))
    assert not len(kept) or not len(gone) or gone.max() <= kept.min()
    inner = masks.global_mask(weights, second / 55, mask)
    assert masks.nested(inner, mask) and sum(int((~kept).sum()) for kept in inner.values()) == second


def test_one_matrix_is_pruned_the_same_in_both_scopes():
    weights = {"a": theta_0(Transformer(SHAPE), 1)["embedding"].abs()}
    assert masks.global_mask(weights, 0.7)["a"].equal(masks.magnitude_mask(weights, 0.7)["a"])


def test_removing_a_head_is_zeroing_its_output():
    """For any batch: the same logits as of the whole model whose head has its output set to zero."""
    model = Transformer(SHAPE, seed=3)
    source = [[5, 9, 11, 1], [7, 1]]
    wanted = decoding.translate(model, source, 1, extra=4)
    for head in EVERY:
        name, _, place = head.rpartition(".")
        module, keep = model.get_submodule(name), torch.ones(1, 4, 1, 1)
        keep[:, int(place)] = 0
        inputs = torch.tensor([[5, 9, 11, 1]])
        module.merge = lambda y, module=module, keep=keep: type(module).merge(module, y * keep)
        with torch.no_grad():
            memory = model.encode(inputs)
            zeroed = model.step(torch.tensor([0]), 0, model.start(memory, inputs))
            del module.__dict__["merge"]
            pruned = Transformer(SHAPE)
            mask = parts.mask(prunable(dict(model.named_parameters())), 4, [head])
            pruned.load_state_dict(masks.apply(model.state_dict(), mask))
            memory = pruned.encode(inputs)
            removed = pruned.step(torch.tensor([0]), 0, pruned.start(memory, inputs))
        torch.testing.assert_close(removed, zeroed, rtol=1e-5, atol=1e-6)
    assert decoding.translate(model, source, 1, extra=4) == wanted


# Tickets ------------------------------------------------------------


def test_removed_parts_stay_zero_with_their_biases(structured, session_study):
    run = structured
    mask = run.mask
    heads, units = parts.removed(mask, 2)
    assert {*heads} == {*HEADS} and units == UNITS
    matrices = sum(shape.numel() for name, shape in session_study.shapes.items() if name in prunable(mask))
    assert size(mask) == parts.size(16, 2, heads=2, units=4) == round(run.sparsity * matrices)
    assert run.record["kept"] == matrices - size(mask) and run.record["prunable"] == matrices
    assert run.curve[-1]["sparsity"] == pytest.approx(run.sparsity)
    for step in (0, 3, 12):
        theta = run.theta(step)
        for name, kept in mask.items():
            assert not theta[name][~kept].any(), (name, step)
    bias = run.weights()["encoder.0.feed_forward.inner_bias"]
    assert bias.count_nonzero() == 32 - 3  # the other biases are trained
    assert memory_mib(run) > 0 and all(row["kept"] > 0 for row in magnitudes(run).values())


def test_a_layer_without_heads_trains_and_scores(session_study, dense, home):
    every = [head for head in parts.heads(1, 2) if "cross" in head]
    [run] = session_study.train([dense.rewind(at=0).prune_heads(heads=every)])
    assert magnitudes(run)["decoder.0.cross_attention.value"]["mean_abs_final"] == 0.0
    chain = session_study.chain(lambda study, seed, levels: iter(()), 1, label=("lt", "heads"))
    chain.runs.append(run)
    assert results.record(session_study, [chain]).status.eq("ok").all()


def test_json_forms(dense):
    ticket = dense.rewind(at=0).prune(by=dense, sparsity=0.5)
    assert ticket.identity["operations"][-1] == {
        "do": "prune", "by": dense.id, "sparsity": 0.5, "checkpoint": "final"
    }  # fmt: skip
    ticket = dense.rewind(at=0).prune(by=dense, sparsity=0.5, scope="global", criterion="movement")
    assert ticket.identity["operations"][-1]["scope"] == "global"
    assert ticket.identity["operations"][-1]["criterion"] == "movement"
    named = dense.rewind(at=0).prune_heads(heads=HEADS[::-1]).prune_feed_forward(units=UNITS)
    assert json.loads(json.dumps(named.identity["operations"][1:])) == [
        {"do": "prune_heads", "heads": sorted(HEADS)},
        {
            "do": "prune_feed_forward",
            "units": [["decoder.0.feed_forward", [7]], ["encoder.0.feed_forward", [0, 5, 31]]],
        },
    ]
    assert named == dense.rewind(at=0).prune_heads(heads=HEADS).prune_feed_forward(units=UNITS)
    assert named.trained_with == "lt" and dense.rewind(at=0.25).prune_heads(heads=HEADS).trained_with == "slt"
    counted = dense.rewind(at=0).prune_heads(by=dense, count=2)
    assert counted.identity["operations"][-1] == {"do": "prune_heads", "by": dense.id, "count": 2}
    assert counted.sparsity == dense.rewind(at=0).prune_heads(heads=HEADS).sparsity


def test_the_least_important_go_first_and_masks_nest(session_study, structured, monkeypatch):
    scores = {head: -i for i, head in enumerate(parts.heads(1, 2))}
    units = {layer: [0.0] * 16 + [1.0] * 16 for layer in parts.units(1, 32)}
    monkeypatch.setattr(operations, "measured", lambda *_: (scores, units))
    ticket = structured.rewind(at=0.25).prune_heads(by=structured, count=1)
    ticket = ticket.prune_feed_forward(by=structured, count=15)
    start = ticket.start()
    assert masks.nested(start.mask, structured.mask)
    heads, gone = parts.removed(start.mask, 2)
    assert set(heads) == {*HEADS, "decoder.0.cross_attention.0"}  # the last head, scored lowest, is gone before
    assert gone["decoder.0.feed_forward"] == [*range(16)]  # 7 was removed before
    assert size(start.mask) == round(ticket.sparsity * operations.size(session_study.context))


def test_global_pruning_goes_on_after_whole_parts(structured, session_study):
    ticket = structured.rewind(at=0.25).prune(by=structured, sparsity=0.6, scope="global")
    mask = ticket.start().mask
    assert masks.nested(mask, structured.mask)
    assert size(mask) == round(0.6 * operations.size(session_study.context))
    assert "encoder.0.feed_forward.inner_bias" in mask


def grown(start, end):
    return end * end.sign() - start * start.sign()


def test_criteria_are_their_closed_forms(dense):
    start, end = prunable(dense.theta(0)), prunable(dense.weights())
    forms = {
        "magnitude_increase": lambda s, e: e.abs() - s.abs(),
        "movement": lambda s, e: (e - s).abs(),
    }
    for name, form in forms.items():
        mask = dense.rewind(at=0).prune(by=dense, sparsity=0.75, criterion=name).start().mask
        for matrix, kept in mask.items():
            score = form(start[matrix], end[matrix])
            assert int((~kept).sum()) == round(0.75 * kept.numel())
            assert score[~kept].max() <= score[kept].min(), matrix
    own = dense.rewind(at=0).prune(by=dense, sparsity=0.75, criterion=grown)
    known = dense.rewind(at=0).prune(by=dense, sparsity=0.75, criterion="magnitude_increase")
    assert own.train_id != known.train_id and own.identity["operations"][-1]["criterion"].startswith("grown:")
    assert all(own.start().mask[name].equal(kept) for name, kept in known.start().mask.items())


# Bad input ------------------------------------------------------------


def bad_shape(start, end):
    return end[:1]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t, r: t.prune_heads(), "either the parts by name"),
        (lambda t, r: t.prune_heads(by=r, heads=HEADS), "either the parts by name"),
        (lambda t, r: t.prune_heads(by=r), "either the parts by name"),
        (lambda t, r: t.prune_heads(by=r, count=7), "6 heads"),
        (lambda t, r: t.prune_heads(by=r, count=1.5), "not a whole number"),
        (lambda t, r: t.prune_heads(heads=["encoder.0.self_attention.2"]), "is none of"),
        (lambda t, r: t.prune_heads(heads=[HEADS[0], HEADS[0]]), "removed once"),
        (lambda t, r: t.prune_heads(heads=HEADS).prune_heads(heads=HEADS[:1]).start(), "removed already"),
        (lambda t, r: t.prune_feed_forward(units={"encoder.0.feed_forward": [32]}), "units 0 to 31"),
        (lambda t, r: t.prune_feed_forward(units={"encoder.1.feed_forward": [0]}), "is none of"),
        (lambda t, r: t.prune_heads(heads=HEADS).prune(by=r, sparsity=0.9), "whole heads or units"),
        (lambda t, r: t.prune_heads(heads=HEADS).gradual(0.9), "whole heads or units"),
        (lambda t, r: t.prune(by=r, sparsity=0.5).prune_heads(heads=HEADS), "single weights"),
        (lambda t, r: t.prune(by=r, sparsity=0.5, scope="global").prune_randomly(0.6), "scope='global'"),
        (lambda t, r: t.prune(by=r, sparsity=0.5, scope="layer"), "scope 'layer' is none of"),
        (lambda t, r: t.prune(by=r, sparsity=0.5, criterion="sum"), "criterion 'sum' is none of"),
        (lambda t, r: t.prune(by=r, sparsity=0.5, criterion=bad_shape).start(), "one finite score per weight"),
        (lambda t, r: t.prune(by=r, sparsity=0.5, criterion=torch.add).train_id, "source can't be read"),
    ],
)
def test_bad_requests_are_one_line(ask, message, dense):
    with pytest.raises(InputError, match=message) as error:
        ask(dense.rewind(at=0), dense)
    assert "\n" not in str(error.value)


# Kill and resume ------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("together", [False, True])
def test_a_killed_structured_training_ends_in_the_same_bytes(make_study, structured, monkeypatch, together, figure):
    """Killed after each checkpoint in turn: weights, mask and record of an unbroken run."""
    monkeypatch.setenv("SLT_LOCKSTEP", "2" if together else "1")
    study = make_study({"seeds": [1]})
    [parent] = study.train([study.ticket(1)])
    ticket = parent.rewind(at=0.25).prune_heads(heads=HEADS).prune_feed_forward(units=UNITS)
    original, kills = Job.checkpoint, 0

    def checkpoint(job, bleu):
        original(job, bleu)
        nonlocal kills
        kills += 1
        raise Killed

    while True:
        monkeypatch.setattr(Job, "checkpoint", checkpoint)
        try:
            study.train([ticket])
        except Killed:
            assert (study.store.folder(ticket.train_id) / RESUME).exists()
            if kills == 4:
                break
        else:
            break
    monkeypatch.setattr(Job, "checkpoint", original)
    [run] = study.train([ticket])
    figure("structured trainings resumed", kills)
    assert kills == 4
    for name, kept in structured.mask.items():
        assert run.mask[name].equal(kept) and not run.weights()[name][~kept].any()
    for name, weight in structured.weights().items():
        if together:
            torch.testing.assert_close(run.weights()[name], weight, rtol=1e-3, atol=1e-4)
        else:
            assert run.weights()[name].equal(weight)
