"""Importance against finite differences of the loss, and the pruning loop against a plain one."""

import pytest
import torch

from slt_lib import masks, parts
from slt_lib.analysis import activations, connectivity, importance
from slt_lib.base.errors import InputError
from slt_lib.study import subnetworks
from slt_lib.study.runs import StandIn
from slt_lib.transformer import Shape, Transformer, prunable

SHAPE = Shape(40, 2, 16, 24, 4)
SOURCES, TARGETS = [[5, 9, 11, 1], [7, 30, 1]], [[8, 21, 1], [6, 9, 10, 2, 1]]


@pytest.fixture(scope="module")
def model():
    model = Transformer(SHAPE, seed=3).double()
    for module in model.modules():  # biases are zero at the start
        if hasattr(module, "inner_bias"):
            torch.nn.init.normal_(module.inner_bias, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def gated(model, name, index, sentence, place, value, heads):
    """Loss, summed over one sentence pair, with one head or unit scaled by `value` at one position."""
    module = model.get_submodule(name)

    def merge(y):
        gate = torch.ones_like(y)
        gate[(0, index, place) if heads else (0, place, index)] = value
        return type(module).merge(module, y * gate)

    module.merge = merge
    pair = [SOURCES[sentence]], [TARGETS[sentence]]
    try:
        return connectivity.loss(model, *pair) * len(TARGETS[sentence])
    finally:
        del module.__dict__["merge"]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("encoder.0.self_attention", 1),
        ("decoder.1.self_attention", 3),
        ("decoder.0.cross_attention", 0),
        ("decoder.1.cross_attention", 2),
        ("encoder.1.feed_forward", 7),
        ("decoder.0.feed_forward", 20),
    ],
)
def test_a_score_is_the_sum_of_finite_differences(model, name, index):
    heads, step, total = "attention" in name, 1e-4, 0.0
    sides = SOURCES if name.startswith("encoder") else TARGETS
    for sentence in range(2):
        for place in range(len(sides[sentence])):
            over, under = (gated(model, name, index, sentence, place, 1 + e, heads) for e in (step, -step))
            total += abs(over - under) / (2 * step)
    tokens = sum(map(len, TARGETS))
    found = importance.raw(model, SOURCES, TARGETS)[name]
    assert len(found) == (4 if heads else 24)
    assert float(found[index]) == pytest.approx(total / tokens, rel=1e-5, abs=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_do_not_depend_on_the_batch(model, monkeypatch):
    whole = importance.raw(model, SOURCES, TARGETS)
    monkeypatch.setattr(activations, "SENTENCES", 1)
    for name, scores in importance.raw(model, SOURCES, TARGETS).items():
        torch.testing.assert_close(scores, whole[name])


def test_a_removed_part_has_no_importance(model):
    weights = dict(model.state_dict())
    mask = parts.mask(prunable(weights), 4, ["encoder.1.self_attention.2"], {"decoder.1.feed_forward": [3]})
    other = Transformer(SHAPE).double()
    other.load_state_dict(masks.apply(weights, mask))
    scores = importance.raw(other, SOURCES, TARGETS)
    assert float(scores["encoder.1.self_attention"][2]) == float(scores["decoder.1.feed_forward"][3]) == 0
    assert (scores["encoder.1.self_attention"] > 0).sum() == 3


# The loop ------------------------------------------------------------


@pytest.fixture
def run(make_study):
    study = make_study({"seeds": [1], "training": {"model": {"layers": 2}}})
    return study.train([study.ticket(1)])[0]


@pytest.fixture
def falling(monkeypatch):
    """Dev BLEU falls by 4 points with each head and by one with each eighth of a feed-forward layer."""

    def bleu(study, weights):
        heads, units = 0, 0
        for head in parts.heads(2, 2):
            name, _, place = head.rpartition(".")
            heads += not weights[f"{name}.value"].view(2, 8, 16)[int(place)].any()
        for layer in parts.units(2, 32):
            units += int((~weights[f"{layer}.inner"].any(1)).sum())
        return 100 - 4 * heads - units / 4

    monkeypatch.setattr(subnetworks, "dev_bleu", bleu)


def test_each_step_removes_the_least_important(run, falling):
    steps = subnetworks.prune_stepwise(run)
    assert [step["dev_bleu"] for step in steps] == [100 - 5 * i for i in range(len(steps))]
    for before, after in zip(steps, steps[1:], strict=False):
        removed = before["heads"], before["units"]
        heads, units = subnetworks.measured(run.study, subnetworks.pruned(run, removed))
        [new] = {*after["heads"]} - {*before["heads"]}
        assert heads[new] == min(score for head, score in heads.items() if head not in before["heads"])
        [layer] = [name for name in after["units"] if after["units"][name] != before["units"].get(name)]
        gone = before["units"].get(layer, [])
        left = sorted(score for i, score in enumerate(units[layer]) if i not in gone)
        now = [units[layer][i] for i in after["units"][layer] if i not in gone]
        assert sorted(now) == left[:4]
    assert len(subnetworks.good(run)[0]) == 2  # 90 of 100 are still 90%


def test_a_loop_goes_on_where_it_was_killed(run, falling, monkeypatch, figure):
    monkeypatch.setattr(subnetworks, "SHARE", 0.9)
    whole = subnetworks.prune_stepwise(run)
    monkeypatch.setattr(subnetworks, "SENTENCES", 511)  # another key: nothing is stored
    original, calls, kills = subnetworks.next_step, [], 0

    def next_step(*arguments):
        if len(calls) == kills + 1:
            raise KeyboardInterrupt
        calls.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(subnetworks, "next_step", next_step)
    while True:
        try:
            again = subnetworks.prune_stepwise(run)
            break
        except KeyboardInterrupt:
            kills += 1
    assert again == whole and kills > 3 and len(calls) == len({str(call) for call in calls})
    figure("pruning loops resumed", kills)


def test_heads_alone_and_feed_forward_alone_go_to_the_end(run, monkeypatch):
    monkeypatch.setattr(subnetworks, "dev_bleu", lambda study, weights: 50.0)
    heads, units = (subnetworks.prune_stepwise(run, kind)[-1] for kind in ("heads", "feed-forward"))
    assert sorted(heads["heads"]) == sorted(parts.heads(2, 2)) and not heads["units"]
    assert units["units"] == parts.units(2, 32) and not units["heads"]
    with pytest.raises(InputError, match="kind 'all' is none of"):
        subnetworks.prune_stepwise(run, "all")


def test_last_heads_go_in_the_order_of_their_scores_before_the_norm(run, monkeypatch):
    """Each attention has one head left, whose normalised score is 1: not the order of names decides."""
    every = parts.heads(2, 2)
    left = every[::2]
    original = importance.raw

    def raw(*arguments):
        found = original(*arguments)
        names = [name for name in found if name.endswith("attention")]
        order = [torch.tensor([7.0 - i, 0.0], dtype=torch.float64) for i in range(len(names))]
        return found | dict(zip(sorted(names), order, strict=True))  # the attention named first is needed most

    monkeypatch.setattr(importance, "raw", raw)
    gone = [head for head in every if head not in left]
    heads, _ = subnetworks.next_step(run, "heads", (gone, {}))
    assert {*heads} - {*gone} == {max(left)}
    ticket = run.rewind(at=0).prune_heads(heads=gone).prune_heads(by=run, count=1)
    assert {*parts.removed(ticket.start().mask, 2)[0]} - {*gone} == {max(left)}


@pytest.mark.parametrize("share", [0.99, 0.9, 0.65])
def test_subnetworks_have_one_size(run, falling, monkeypatch, share):
    monkeypatch.setattr(subnetworks, "SHARE", share)
    good = subnetworks.good(run)
    bad = subnetworks.subnetwork(run, "bad")
    random = [subnetworks.subnetwork(run, "random", draw) for draw in range(3)]

    def each(removed):
        return {*removed[0]} | {(layer, i) for layer, numbers in removed[1].items() for i in numbers}

    sizes = {(len(heads), sum(map(len, units.values()))) for heads, units in (good, bad, *random)}
    assert len(sizes) == 1 and len({str(each) for each in random}) == 3
    every = {*parts.heads(2, 2)} | {(layer, i) for layer, numbers in parts.units(2, 32).items() for i in numbers}
    kept_by_good = every - each(good)
    overlap = len(each(good) & each(bad))  # bad leaves out parts of good's removal only when it must
    assert overlap == max(0, len(each(good)) - len(kept_by_good)) or share == 0.65
    assert random == [subnetworks.subnetwork(run, "random", draw) for draw in range(3)]


def test_tickets_of_subnetworks(run, falling):
    for pruning in ("structured", "unstructured"):
        kept = {}
        for which in subnetworks.SUBNETWORKS:
            ticket = subnetworks.pruned_ticket(run.rewind(at=0), run, pruning, which, 0, 0.8)
            start = ticket.start()
            kept[which] = masks.kept(prunable(start.mask))
            weights = run.weights("best")
            if (pruning, which) == ("structured", "good"):
                heads, units = subnetworks.good(run)
                assert {*parts.removed(start.mask, 2)[0]} == {*heads} and parts.removed(start.mask, 2)[1] == units
            if pruning == "unstructured" and which != "random":
                for name, keep in start.mask.items():
                    low, high = (
                        weights[name][part].abs() for part in ((~keep, keep) if which == "good" else (keep, ~keep))
                    )
                    assert low.max() <= high.min()
        assert len(set(kept.values())) == 1
    plain = run.rewind(at=0)
    assert plain.prune_randomly(0.5).identity["operations"][-1] == {"do": "prune_randomly", "sparsity": 0.5}
    assert plain.prune_randomly(0.5, 1).train_id != plain.prune_randomly(0.5).train_id
    planned = StandIn(run.ticket, run.study)
    assert subnetworks.pruned_ticket(planned.rewind(at=0), planned, "structured", "bad", 0, 0.8).train_id
