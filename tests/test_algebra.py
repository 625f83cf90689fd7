"""The algebra of tickets against plain loops, written from FACTS.md section 7 with masks and the trainer alone."""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from pydantic import BaseModel

from slt_lib import masks
from slt_lib.base import settings as params
from slt_lib.base import store
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import digest
from slt_lib.plan import Planned
from slt_lib.study import Run, Study, results, scores
from slt_lib.study.chains import rewound_steps
from slt_lib.study.operations import Operation
from slt_lib.study.runs import StandIn
from slt_lib.study.scores import score_id
from slt_lib.techniques import (
    RECIPES,
    STABILITY,
    ablations,
    clt,
    clt_control,
    compared,
    comparisons,
    dense,
    lt,
    mp,
    mp_slt,
    slt,
    slt_control,
    slt_mp,
    stability,
)
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import weights_hash
from slt_lib.train.loop import Start
from slt_lib.transformer import dropout_masks, prunable, theta_0

LEVELS = [0.5, 0.6, 0.8]
REWIND, STEPS = 0.25, 12
RECIPE_KNOBS = {"mp": {}, "lt": {}} | {name: {"rewind": REWIND} for name in ("slt", "clt", "slt-mp", "mp-slt")}


@pytest.fixture(scope="module")
def study(session_study):
    return session_study


def runs_of(study, generator):
    """Every run of a recipe, listed or not, one after another."""
    runs, answer = [], None
    while True:
        try:
            asked = generator.send(answer)
        except StopIteration:
            return runs
        if isinstance(asked, list):
            answer = study.train(asked)
            runs += answer
        else:
            [answer] = study.train([asked])
            runs.append(answer)


def refuse(*_, **__):
    raise AssertionError("this must not train")


# Loops by hand ------------------------------------------------------------


@dataclass
class Trained:
    start: dict  # theta_0, theta_t, ... times the mask
    early: dict  # theta at the rewind point
    end: dict  # theta_T
    mask: dict | None


class Hand:
    """FACTS.md section 7 as it is written there: TRAIN, PRUNE and one loop a technique."""

    def __init__(self, study, seed, rewind=REWIND):
        self.study, self.seed, self.rewind = study, seed, rewind
        self.theta_0 = theta_0(study.model(), seed)
        self.r0 = self.train(self.theta_0, None, 0)

    def train(self, init, mask, depth, gradual=None):
        start = Start(masks.apply(init, mask or {}), mask, gradual, "adafactor", self.seed, depth)  # theta (.) m
        settings, data = self.study.params.training, self.study.data
        early, end = training.replay(settings, data, start, [round(self.rewind * STEPS), STEPS]).values()
        if gradual:
            mask = {name: weight != 0 for name, weight in prunable(end).items()}
        return Trained(start.weights, early, end, mask)

    def prune(self, run, sparsity):
        return masks.magnitude_mask(prunable(run.end), sparsity, run.mask)

    def mp(self, levels):
        return [self.train(self.theta_0, None, 0, (0.0, s)) for s in levels]

    def lt(self, levels):
        runs = [self.r0]
        for depth, s in enumerate(levels, start=1):
            runs.append(self.train(self.theta_0, self.prune(runs[-1], s), depth))
        return runs

    def slt(self, levels, source="last"):
        runs = [self.r0]
        for depth, s in enumerate(levels, start=1):
            init = runs[-1].early if source == "last" else self.r0.early
            runs.append(self.train(init, self.prune(runs[-1], s), depth))
        return runs

    def clt(self, levels):
        runs = [self.r0]
        for depth, s in enumerate(levels, start=1):
            init = dict(runs[-1].early)
            for name, weight in prunable(init).items():
                rows, columns = weight.shape
                init[name] = weight.sign() * math.sqrt(6 / (rows + columns))
            runs.append(self.train(init, self.prune(runs[-1], s), depth))
        return runs

    def slt_mp(self, levels, start="first", path=()):
        runs = self.slt([*path, 0.5])
        a, depth = runs[-1], len(runs)
        m60 = self.prune(a, 0.6)
        b = self.train(a.early, m60, depth)
        if start == "first":
            final = [self.train(a.early, m60, depth, (0.6, s)) for s in levels if s > 0.6]
        else:
            final = [self.train(b.early, b.mask, depth + 1, (0.6, s)) for s in levels if s > 0.6]
        return [*runs, b, *final]

    def mp_slt(self, levels, retrain=True):
        runs = [self.train(self.theta_0, None, 0, (0.0, 0.6))]
        if retrain:
            runs.append(self.train(runs[0].early, runs[0].mask, 1))
        for s in levels:
            if s > 0.6:
                runs.append(self.train(runs[-1].early, self.prune(runs[-1], s), len(runs)))
        return runs


@pytest.fixture(scope="module")
def hand(study):
    return Hand(study, seed=1)


def same(one, other):
    """Byte for byte, a pruned weight's zero included."""
    return one.keys() == other.keys() and all(
        one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one
    )


def agree(runs, by_hand):
    assert len(runs) == len(by_hand)
    for run, wanted in zip(runs, by_hand, strict=True):
        assert same(run.theta(0), wanted.start), run
        assert same(run.theta(3), wanted.early), run
        assert same(run.weights(), wanted.end), run
        assert (run.mask is None) == (wanted.mask is None)
        if run.mask is not None:
            assert same(run.mask, wanted.mask), run


@pytest.mark.parametrize("name", RECIPE_KNOBS)
def test_each_technique_is_its_loop(name, study, hand):
    runs = runs_of(study, RECIPES[name](study, 1, LEVELS, **RECIPE_KNOBS[name]))
    agree(runs, getattr(hand, name.replace("-", "_"))(LEVELS))


@pytest.mark.parametrize(
    ("recipe", "knobs", "loop"),
    [
        (slt, {"source": "dense"}, lambda hand: hand.slt(LEVELS, "dense")),
        (slt_mp, {"start": "second"}, lambda hand: hand.slt_mp(LEVELS, "second")),
        (slt_mp, {"stepwise": True}, lambda hand: hand.slt_mp(LEVELS, path=(0.1, 0.2, 0.3, 0.4))),
        (mp_slt, {"retrain": False}, lambda hand: hand.mp_slt(LEVELS, retrain=False)),
        (slt, {"iterative": False}, lambda hand: [hand.r0, *(hand.slt([s])[1] for s in LEVELS)]),
    ],
)
def test_each_other_reading_is_its_loop(recipe, knobs, loop, study, hand):
    agree(runs_of(study, recipe(study, 1, LEVELS, rewind=REWIND, **knobs)), loop(hand))


def test_without_a_reset_the_weights_go_on(study):
    runs = runs_of(study, slt(study, 1, [0.5], rewind=1.0))
    wanted = masks.apply(runs[0].weights(), runs[1].mask)
    assert same(runs[1].theta(0), wanted)


# What the paper says of them ------------------------------------------------------------


@pytest.fixture(scope="module")
def all_runs(study):
    return {name: runs_of(study, RECIPES[name](study, 1, LEVELS, **knobs)) for name, knobs in RECIPE_KNOBS.items()}


def test_masks_have_their_sparsity_and_nest(all_runs):
    for name, runs in all_runs.items():
        for run in runs:
            for matrix, kept in (run.mask or {}).items():
                assert int((~kept).sum()) == round(run.sparsity * kept.numel())
                assert not run.weights()[matrix][~kept].any()
        if name in ("lt", "slt", "clt", "mp-slt"):
            assert all(masks.nested(b.mask, a.mask) for a, b in zip(runs, runs[1:], strict=False) if a.mask)


def test_lottery_tickets_restart_from_theta_0(study, all_runs):
    start = theta_0(study.model(), 1)
    for run in all_runs["lt"][1:]:
        assert same(run.theta(0), masks.apply(start, run.mask))


def test_stabilized_tickets_restart_from_theta_t_of_the_last_run(all_runs):
    for last, run in zip(all_runs["slt"], all_runs["slt"][1:], strict=False):
        assert same(run.theta(0), masks.apply(last.theta(3), run.mask))


def test_constant_tickets_have_one_magnitude_a_matrix_and_the_signs_of_theta_t(all_runs):
    for last, run in zip(all_runs["clt"], all_runs["clt"][1:], strict=False):
        start, early = run.theta(0), last.theta(3)
        for matrix, kept in run.mask.items():
            [magnitude] = start[matrix][kept].abs().unique().tolist()
            assert magnitude == pytest.approx(math.sqrt(6 / sum(kept.shape)))
            assert torch.equal(start[matrix][kept].sign(), early[matrix][kept].sign())
        rest = start.keys() - run.mask.keys()
        assert rest and all(torch.equal(start[name], early[name]) for name in rest)  # biases and norms keep theta_t


def test_slt_mp_never_revives_what_slt_took(all_runs):
    *_, b, final = all_runs["slt-mp"]
    assert b.sparsity == 0.6 and final.sparsity == 0.8
    first = masks.magnitude_mask(prunable(all_runs["slt-mp"][1].weights()), 0.6, all_runs["slt-mp"][1].mask)
    assert same(b.mask, first) and masks.nested(final.mask, first)
    for step in (0, 3, 12):
        for matrix, kept in first.items():
            assert not final.theta(step)[matrix][~kept].any()
    assert same(final.theta(0), b.theta(0))  # the very start of the run at 60%


def test_mp_slt_begins_with_the_final_mask_of_mp(all_runs):
    pruned, retrained, after = all_runs["mp-slt"]
    assert pruned.id == next(run.id for run in all_runs["mp"] if run.sparsity == 0.6)  # trained once for both
    assert same(retrained.mask, pruned.mask)
    assert same(retrained.theta(0), masks.apply(pruned.theta(3), pruned.mask))
    assert masks.nested(after.mask, pruned.mask) and after.root is pruned


def test_a_mask_by_another_run_nests_in_both(all_runs):
    mine, other = all_runs["slt"][1], all_runs["clt"][1]
    start = mine.rewind(at=REWIND).prune(by=other, sparsity=0.9).start()
    assert masks.nested(start.mask, mine.mask) and masks.nested(start.mask, other.mask)
    assert all(int((~kept).sum()) == round(0.9 * kept.numel()) for kept in start.mask.values())


def test_masks_may_come_from_the_best_checkpoint(study):
    [first] = study.train([study.ticket(1)])
    run = Run(first.ticket, first.record | {"best": {"step": 3, "dev_bleu": 1.0}}, study)
    start = run.rewind(at=REWIND).prune(by=run, sparsity=0.5, checkpoint="best").start()
    assert same(start.mask, masks.magnitude_mask(prunable(first.theta(3)), 0.5))
    assert not same(start.mask, masks.magnitude_mask(prunable(first.weights()), 0.5))


# Controls ------------------------------------------------------------


def test_random_signs_have_the_same_mask_and_magnitudes(study, all_runs):
    plain = all_runs["clt"][1].ticket.start()
    other = runs_of(study, clt_control(study, 1, LEVELS, signs="random", rewind=REWIND))[1].ticket.start()
    assert same(plain.mask, other.mask)
    for matrix, weight in prunable(other.weights).items():
        assert torch.equal(weight.abs(), plain.weights[matrix].abs())
        kept = plain.mask[matrix]
        share = (weight == plain.weights[matrix])[kept].float().mean().item()
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(kept.sum())


@pytest.mark.parametrize("magnitudes", ["shuffled", "redrawn"])
def test_other_magnitudes_have_the_same_mask_and_signs(magnitudes, study, all_runs):
    [last] = study.train([study.ticket(1)])
    ticket = last.rewind(at=REWIND).prune(by=last, sparsity=0.5)
    plain, other = ticket.start(), ticket.constant(magnitudes=magnitudes).start()
    assert same(plain.mask, other.mask)
    for matrix, kept in plain.mask.items():
        a, b = plain.weights[matrix][kept], other.weights[matrix][kept]
        assert torch.equal(a.sign(), b.sign()) and not torch.equal(a, b)
        if magnitudes == "shuffled":
            assert torch.equal(a.abs().sort().values, b.abs().sort().values)
        elif matrix != "embedding":
            assert b.abs().max() <= math.sqrt(6 / sum(kept.shape))
    assert same(other.weights, ticket.constant(magnitudes=magnitudes).start().weights)  # drawn from the ticket alone


def test_controls_of_slt(study, all_runs):
    by_mask, by_weights = (
        runs_of(study, slt_control(study, 1, LEVELS, control=control, rewind=REWIND))[1].ticket.start()
        for control in ("mask", "weights")
    )
    plain = all_runs["slt"][1].ticket.start()
    early = all_runs["slt"][0].theta(3)
    assert same(by_mask.weights, masks.apply(early, by_mask.mask)) and not same(by_mask.mask, plain.mask)
    assert all(int((~by_mask.mask[m]).sum()) == int((~plain.mask[m]).sum()) for m in plain.mask)
    assert same(by_weights.mask, plain.mask)
    assert not any(torch.equal(by_weights.weights[m], plain.weights[m]) for m in plain.mask)
    assert not same(by_weights.weights, theta_0(study.model(), 1))


def test_the_dense_run_once_more(study, all_runs):
    chain = study.chain(slt_control, 1, LEVELS, control="none", rewind=REWIND)
    study.follow([chain])
    dense, *again = chain.runs
    assert [run.ticket.depth for run in again] == [1, 2, 3]
    for last, run in zip(chain.runs, again, strict=False):
        start = run.ticket.start()
        assert start.mask is None and same(start.weights, last.theta(3)) and not same(start.weights, dense.theta(0))
    variants = [results.row_labels(study, chain, run, "best") for run in chain.runs]
    default = f"control=none,rewind={REWIND}"
    rows = [("slt", default), ("slt", f"{default},depth=2"), ("slt", f"{default},depth=3")]
    assert variants == [("dense", ""), *rows]


@pytest.mark.parametrize("start", list(STABILITY))
def test_copies_of_a_ticket_differ_in_their_noise_alone(start, study, all_runs):
    chain = study.chain(stability, 1, LEVELS, STABILITY[start], start=start, at=0.6, rewind=REWIND)
    [chain] = study.follow([chain])
    own, *copies = chain.runs[-3:]
    assert [run.ticket.noise for run in (own, *copies)] == [0, 1, 2]
    of = {"theta_0": "slt", "lt": "lt", "slt": "slt"}
    if start in of:  # the ticket that its technique trains
        assert own.id == all_runs[of[start]][0 if start == "theta_0" else 2].id
    for copy in copies:
        assert same(copy.ticket.start().weights, own.ticket.start().weights)
        assert same(copy.ticket.start().mask or {}, own.ticket.start().mask or {})
        assert copy.ticket.depth == own.ticket.depth and not same(copy.weights(), own.weights())
    assert not same(copies[0].weights(), copies[1].weights())
    names = [results.row_labels(study, chain, run, "best") for run in chain.runs[-3:]]
    technique, variant = STABILITY[start]
    comma = "," if variant else ""
    assert names == [(technique, variant), *((technique, f"{variant}{comma}noise={k}") for k in (1, 2))]


def test_noise_depends_on_the_depth_and_the_copy(study):
    seen = {}
    rates = {"residual": 0.5, "attention": 0.5, "relu": 0.5}
    for order, depth, copy in [("fresh", 0, 0), ("fresh", 1, 0), ("fresh", 0, 1), ("fresh", 1, 1), ("same", 3, 0)]:
        settings = study.params.training.model_copy(update={"order": order})
        start = Start({}, None, None, "adafactor", 1, depth, copy)
        batches = training.new_batches(settings, study.data, start)
        [drop] = dropout_masks({"x": ("relu", (64,))}, rates, 1, batches.noise, 0).values()
        seen[order, depth, copy] = tuple(batches.order(0)[:20]), tuple(drop.tolist())
    assert seen.pop(("same", 3, 0)) == seen["fresh", 0, 0]  # as at depth 0, on purpose
    orders, drops = zip(*seen.values(), strict=True)
    assert len(set(orders)) == len(set(drops)) == 4


# Identity ------------------------------------------------------------


def test_making_a_ticket_trains_nothing(study, all_runs, monkeypatch):
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    monkeypatch.setattr(Run, "_load", refuse)  # nor does it read
    for runs in all_runs.values():
        run = runs[-1]
        for at in (0, 0.25, 1 / 3, 1):  # a third is a checkpoint that was not kept
            for source in ("last", "dense"):
                ticket = run.rewind(at, source).prune(by=run, sparsity=0.9).constant("random", "shuffled")
                assert len(ticket.gradual(0.95, 0.9).train_id) == 32
        assert run.rewind(0.25).prune_randomly(0.9).reinitialised().unlisted().trained_with


def test_equal_tickets_have_equal_ids_whoever_makes_them(study, all_runs):
    first = {name: all_runs[name][0].id for name in ("lt", "slt", "clt", "slt-mp")}
    assert len(set(first.values())) == 1
    assert first["lt"] == study.ticket(1).train_id == runs_of(study, dense(study, 1))[0].id
    assert all_runs["slt-mp"][1].id == all_runs["slt"][1].id  # 50%: one training for both
    assert [run.id for run in runs_of(study, slt(study, 1, LEVELS, rewind=0.0))] == [r.id for r in all_runs["lt"]]
    plain = {run.id for run in runs_of(study, clt_control(study, 1, LEVELS, rewind=REWIND))}
    assert plain == {all_runs["clt"][0].id, all_runs["clt"][1].id}
    ids = [run.id for runs in all_runs.values() for run in runs]
    # dense once, MP's 60% once, SLT's 50% and 60% once
    assert len(set(ids)) == 16 and len(ids) == 22


def test_numbers_are_spelled_one_way_in_a_ticket(study, all_runs):
    run = all_runs["slt"][1]
    a, b = (run.rewind(at).prune(by=run, sparsity=s) for at, s in ((1, 0.8), (1.0, 8e-1)))
    assert a.train_id == b.train_id and a == b
    assert study.ticket(1).gradual(final=0.5, initial=0).train_id == study.ticket(1).gradual(0.5, 0.0).train_id


# Recipe or comparison -> digest of the ids of all its tickets on the tiny study, with empty digests of corpus and
# vocabulary. Stored runs are found by these ids: they change with RECIPE_VERSION alone.
IDS = {
    "dense": "b5420d3def159acc",
    "mp": "372de5fbb73c4a69",
    "lt": "2f3347e1a9874c34",
    "slt": "3a909109a6df4276",
    "clt": "84fe6f8a6264e535",
    "slt-mp": "802c2c006268f097",
    "mp-slt": "f9be28c7872b4009",
    "signs": "b56f1a0e530afcac",
    "frankle": "8239ae6af4b4030a",
    "rewind": "3a7dafd522bfa0fc",
    "source": "d2053bf6649f111f",
    "one-shot": "7e754b221c84d867",
    "stepwise": "d313db89209d060d",
    "switch": "1f2c61253001e825",
    "optimizer": "741768daeb58d401",
    "average": "6016f195061f6cdd",
    "final": "336a0cedf8ecd554",
    "controls": "c4a7d031f96e7458",
    "again": "0e9a38834462ba51",
    "scope": "fc143dd10446fe9f",
    "criterion": "ae3916e172182da8",
    "subnetworks": "31c75b0898de6192",  # of stand-ins: which parts go is known after the dense training
    "stability": "552fc7167eaf0f50",
}


def test_ids_of_stored_runs_stay(study_file):
    planned = Planned(study_file())

    def ids(chains):
        planned.tickets = {}
        planned.follow(chains)
        return digest(sorted(planned.tickets))[:16]

    found = {name: ids([planned.chain(recipe, 1)]) for name, recipe in RECIPES.items()}
    found |= {name: ids(chains) for name, chains in compared(planned, list(comparisons(LEVELS))).items()}
    assert found == IDS


def test_a_parameter_of_an_operation_at_its_default_is_left_out_of_its_json():
    @dataclass(frozen=True)
    class Other(Operation):
        do = "other"
        level: float
        scope: str = "matrix"

    assert Other(0.5).json() == {"do": "other", "level": 0.5}
    assert Other(0.5, "model").json() == {"do": "other", "level": 0.5, "scope": "model"}


def test_tickets_are_hashable_values(make_study):
    one, other = (make_study().ticket(1) for _ in range(2))
    assert one == other and len({one, other, one.gradual(0.5), other.gradual(0.5)}) == 2
    runs = [StandIn(ticket, make_study()) for ticket in (one, other)]
    pruned = [run.rewind(0.25).prune(by=run, sparsity=0.5).constant() for run in runs]
    assert pruned[0] == pruned[1] and len(set(pruned)) == 1 and pruned[0].runs == {one.train_id: runs[1]}


def test_asking_for_an_id_writes_nothing(make_study, home):
    study = make_study()
    study_files = sorted(home.rglob("*"))
    assert study.vocabulary.digest == study.context.vocabulary and study.shapes and study.model()
    assert len(study.ticket(1).gradual(0.5).train_id) == 32 and study.find(study.ticket(1)) is None
    assert sorted(home.rglob("*")) == study_files
    study.prepare()
    assert study.vocabulary_file().exists()


OTHER = {
    "model": {
        "layers": 2, "hidden": 32, "filter": 40, "heads": 4,
        "residual_dropout": 0.2, "attention_dropout": 0.2, "relu_dropout": 0.2,
    },
    "batch": {"rows": 16, "length": 56, "packed": False},
    "peak_lr": {"adafactor": 0.06},
    "gradual": {"every": 0.5, "until": 0.6},
    "steps": 24, "optimizer": "adam", "warmup": 0.5, "label_smoothing": 0.2, "precision": "bf16", "order": "same",
    "pruned": "stale", "thresholds": "histogram", "checkpoint": 0.5, "dev_beam": 2,
    "dev_extra": 3, "dev_sentences": 3,
}  # fmt: skip


def fields(model, path=()):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, (*path, name))
        else:
            yield (*path, name)


def test_any_training_parameter_reaches_the_identity(make_study):
    seen = {make_study().ticket(1).gradual(0.5).train_id}
    count = 1
    for path in fields(Training):
        if path == ("peak_lr", "adam"):
            continue
        value = OTHER
        for name in path:  # a new parameter asks for a value above
            value = value[name]
        for name in reversed(path):
            value = {name: value}
        seen.add(make_study({"training": value}).ticket(1).gradual(0.5).train_id)
        count += 1
        assert len(seen) == count, path


def test_what_does_not_reach_the_weights_is_no_identity(make_study):
    plain = make_study().ticket(1)
    for changes in (
        {"threads": 2},
        {"keep": [0.5]},
        {"decoding": {"beam": 3, "alpha": 0.0}},
        {"levels": [0.9]},
        {"seeds": [7, 1]},
        {"rehearsal": False, "ablations": True},
        {"training": {"peak_lr": {"adam": 0.5}}},  # of the optimizer that is not used
        {"training": {"gradual": {"every": 0.5}, "thresholds": "histogram"}},  # not gradual
    ):
        assert make_study(changes).ticket(1).train_id == plain.train_id, changes


def test_seed_optimizer_and_version_reach_the_identity(make_study, monkeypatch):
    study = make_study()
    seen = {study.ticket(1).train_id, study.ticket(2).train_id, study.ticket(1, "adam").train_id}
    assert study.ticket(1, "adafactor").train_id in seen and len(seen) == 3
    monkeypatch.setattr(params, "RECIPE_VERSION", params.RECIPE_VERSION + 1)
    assert study.ticket(1).train_id not in seen


@pytest.fixture
def own(home, make_study):
    """A study of one's own files, and a function that writes them."""
    lines = {
        "en": "the man sees a dog\n" * 3 + "a cat sleeps\n",
        "de": "der Mann sieht einen Hund\n" * 3 + "eine Katze schläft\n",
    }

    def made(replaced=None, vocabulary=30):
        folder = home / "text"
        folder.mkdir(exist_ok=True)
        for split in ("train", "dev", "test"):
            for language, text in lines.items():
                text = text if (split, language) != replaced else text.replace("s", "x", 1)
                (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
        return make_study({"corpus": {"name": "files", "folder": str(folder)}, "vocabulary": vocabulary})

    return made


def test_a_byte_of_the_corpus_and_the_vocabulary_reach_the_identity(own):
    plain = own().ticket(1).train_id
    for split in ("train", "dev"):
        for language in ("en", "de"):
            assert own((split, language)).ticket(1).train_id != plain, (split, language)
    assert own(vocabulary=31).ticket(1).train_id != plain
    assert own(("test", "en")).ticket(1).train_id == plain  # a test set reaches scores alone
    ids = []
    for changed in (None, ("test", "en"), ("test", "de")):
        study = own(changed)
        ids.append(score_id(Run(study.ticket(1), {}, study), "test"))
    assert len(set(ids)) == 3


def test_decoding_reaches_scores_alone(make_study, monkeypatch):
    first = make_study()
    [run] = first.train([first.ticket(1)])
    first_scores = scores.scores(run)
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    seen = {score_id(run, "test")}
    for decoding in ({"beam": 1}, {"alpha": 0.0}, {"extra": 3}):
        study = make_study({"decoding": decoding})
        [other] = study.train([study.ticket(1)])
        assert other.id == run.id and score_id(other, "test") not in seen
        seen.add(score_id(other, "test"))
        assert scores.scores(other)["test"]["hypotheses"]
    assert len(list((run.folder.path / "scores").iterdir())) == 4
    # and what is scored is not scored again, but where it is damaged
    with monkeypatch.context() as patch:
        patch.setattr(scores, "translate", refuse)
        assert scores.scores(run) == first_scores
    path = run.folder.path / "scores" / f"{score_id(run, 'test')}.json"
    path.write_text(path.read_text()[:-20])
    assert scores.scores(run) == first_scores


# Mistakes ------------------------------------------------------------


def test_mistakes_in_a_ticket(study, all_runs):
    run = all_runs["slt"][2]
    ticket = run.rewind(at=0.25)
    for act, line in (
        (
            lambda: ticket.prune(by=run, sparsity=1.2),
            "sparsity 1.2 is not a fraction from 0 to below 1 (0.9 means 90%)",
        ),
        (lambda: ticket.prune(by=run, sparsity=90), "sparsity 90 is not a fraction from 0 to below 1 (0.9 means 90%)"),
        (
            lambda: ticket.prune(by=run, sparsity=0.5),
            "sparsity 0.5 is below 0.6, which is pruned already: levels must rise",
        ),
        (lambda: ticket.prune_randomly(0.5), "sparsity 0.5 is below 0.6, which is pruned already: levels must rise"),
        (
            lambda: study.ticket(1).prune(by=run, sparsity=0.5),
            "sparsity 0.5 is below 0.6, which is pruned already: levels must rise",
        ),
        (lambda: ticket.gradual(0.5, 0.6), "sparsity 0.5 is below 0.6, which is pruned already: levels must rise"),
        (lambda: ticket.gradual(0.9), "gradual from sparsity 0.0: the mask already has 0.6; start from there"),
        (lambda: ticket.prune(by=run, sparsity=0.8, checkpoint="first"), "checkpoint 'first' is none of final, best"),
        (lambda: ticket.constant(signs="none"), "signs 'none' is none of kept, random"),
        (lambda: ticket.constant(magnitudes="x"), "magnitudes 'x' is none of constant, redrawn, shuffled"),
        (lambda: run.rewind(at=1.5), "rewind 1.5 is not a fraction of the training from 0 to 1"),
        (lambda: run.rewind(at=0, source="first"), "source 'first' is none of last, dense"),
        (lambda: run.weights("last"), 'checkpoint \'last\' is none of "final", "best", "average 4"'),
        (lambda: run.weights("average 0"), 'checkpoint \'average 0\' is none of "final", "best", "average 4"'),
        (lambda: study.ticket(1, "sgd"), "optimizer 'sgd' is none of adafactor, adam"),
        (lambda: study.chain(mp, 1, at=3), "mp has no knob 'at'; it has study, seed, levels, optimizer"),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert str(caught.value) == line


def test_mistakes_in_a_study(study_file):
    path = study_file()
    for options, line in (
        ({"pair": "en-xx"}, f"pair 'en-xx': {os.path.relpath(path)} has en-de"),
        ({"seeds": [1, 1]}, "seeds [1, 1] must differ from each other"),
        ({"seeds": [1, -1]}, "seeds: -1 is not a whole number from 0"),
        ({"seeds": ["1"]}, "seeds: '1' is not a whole number from 0"),
        ({"seeds": [True]}, "seeds: True is not a whole number from 0"),
        ({"levels": [50]}, "levels: 50.0 is not a sparsity between 0 and 1 (0.9 means 90%)"),
        ({"levels": [0.9, 0.5]}, "levels [0.9, 0.5] must rise: a pruned weight does not come back"),
    ):
        with pytest.raises(InputError) as caught:
            Study(path, **options)
        assert str(caught.value) == line


# Runs and chains ------------------------------------------------------------


# Weights that were not kept ------------------------------------------------------------


def test_a_checkpoint_that_was_not_kept_is_trained_again_once(study, all_runs, monkeypatch):
    for run in (all_runs["slt"][1], all_runs["mp"][2]):
        assert "theta_0000005.safetensors" not in run.record["files"]
        wanted = training.replay(study.params.training, study.data, run.ticket.start(), [5])[5]
        assert same(run.theta(5), wanted)
        with monkeypatch.context() as patch:
            patch.setattr(training, "replay", refuse)
            assert same(run.theta(5), wanted)  # from the run's folder now


def test_every_checkpoint_has_the_hash_of_its_weights(all_runs):
    for run in (all_runs["slt"][1], all_runs["mp"][2]):
        assert [weights_hash(run.theta(point["step"])) for point in run.curve] == [
            point["weights"] for point in run.curve
        ]
        changed = {name: weight.clone() for name, weight in run.weights().items()}
        changed["embedding"][3, 3] = torch.nextafter(changed["embedding"][3, 3], torch.tensor(9.0))
        assert weights_hash(changed) != run.weights_hash == weights_hash(run.weights())


def test_weights_that_can_not_be_had_again_are_refused(make_study, monkeypatch):
    """A lockstep training adds in another order than a solo one: its theta_t is not what a replay gives."""
    monkeypatch.setenv("SLT_LOCKSTEP", "2")
    study = make_study({"keep": []})
    runs = study.train([study.ticket(1), study.ticket(2)])
    monkeypatch.delenv("SLT_LOCKSTEP")
    message = (
        rf"run {runs[0].id[:12]}: weights at 0.416667 of its training were not kept, and training it again here gives "
        rf"other weights at step 6 than it had; add 0.416667 to `keep` in .*tiny.yaml, then `python -m slt_lib runs "
        rf"remove {runs[0].id[:12]}` and `python -m slt_lib run tiny`"
    )
    with pytest.raises(InputError, match=message) as error:
        study.follow([study.chain(slt, 1, [0.5], rewind=5 / 12)])
    assert "\n" not in str(error.value)
    assert not list(runs[0].folder.path.glob("replayed_*"))
    again = make_study({"keep": [0.416667]})  # the remedy
    again.store.remove(runs[0].id)
    [chain] = again.follow([again.chain(slt, 1, [0.5], rewind=5 / 12)])
    assert [run.sparsity for run in chain.runs] == [0, 0.5]


def test_a_replay_takes_the_threads_of_its_run(make_study, monkeypatch):
    study = make_study({"keep": [], "threads": 2})
    [run] = study.train([study.ticket(1)])
    study.params = study.params.model_copy(update={"threads": 1})
    counts, real = [], training.replay
    monkeypatch.setattr(training, "replay", lambda *a, **k: counts.append(torch.get_num_threads()) or real(*a, **k))
    run.theta(5)
    assert counts == [2]


@pytest.mark.parametrize("recipe", [slt, clt, slt_mp, mp_slt, slt_control])
def test_what_a_chain_rewinds_to_is_kept(recipe, make_study, monkeypatch):
    """Nothing is trained a second time for a rewind point that no study file names."""
    study, starts, real = make_study({"keep": []}), [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: starts.append(a) or real(*a, **k))
    monkeypatch.setattr(training, "replay", refuse)
    knobs = {"control": "mask", "at": 0.8} if recipe is slt_control else {}
    study.follow([study.chain(recipe, 1, rewind=5 / 12, **knobs)])
    assert starts
    assert not list(study.store.path.glob("*/replayed_*"))


@pytest.mark.parametrize("name", ["quick", "multi30k", "multi30k-large", "wmt14-en-de", "wmt14-en-fr"])
def test_a_study_file_keeps_what_its_comparisons_rewind_to(name):
    """So that a dense run trained for one notebook serves the comparisons of another."""
    study = Planned(name)
    chains = ablations(study) + [study.chain(RECIPES[technique], 1) for technique in study.params.pairs[study.pair]]
    for steps in rewound_steps(study, chains).values():
        assert steps <= study.params.kept_steps() | {0, study.params.training.steps}


def test_a_stored_chain_stops_at_what_is_missing(make_study, monkeypatch):
    """Those of its runs that are there are given, in a list of tickets too; nothing is trained."""
    study = make_study()
    trained, _ = study.follow([study.chain(mp, 1, [0.5, 0.8]), study.chain(dense, 1)])
    study.store.remove(trained.runs[0].id)
    monkeypatch.setattr(training, "train", refuse)
    chains = [study.chain(mp, 1, [0.5, 0.8]), study.chain(slt, 1, [0.5]), study.chain(dense, 2)]
    loop, ticket, other = study.follow(chains, stored=True)
    assert [run.sparsity for run in loop.runs] == [0.8] and "mp at sparsity 0.5 is not trained" in loop.reason
    assert [run.sparsity for run in ticket.runs] == [0.0] and "slt at sparsity 0.5 is not trained" in ticket.reason
    assert not other.runs and "seed 2: dense at sparsity 0 is not trained" in other.reason


def test_a_chain_through_a_level_needs_only_what_the_level_depends_on(make_study):
    study = make_study({"levels": [0.5, 0.6, 0.8, 0.9]})
    wanted = {slt: [0.5, 0.6, 0.8], mp: [0.8], slt_mp: [0.8]}
    assert {recipe: study.through(recipe, 1, [0.8]).levels for recipe in wanted} == wanted


def test_a_run_knows_the_weights_of_its_parents(make_study, capsys):
    """A parent that is trained again with other weights, as on another machine: its children are not reported."""
    study = make_study()
    chain = lambda: study.chain(slt, 1, [0.5, 0.8], rewind=REWIND)  # noqa: E731
    [first] = study.follow([chain()])
    for parent, child in zip(first.runs, first.runs[1:], strict=False):
        assert child.record["parents"] == {parent.id: parent.weights_hash}
    dense, child, grandchild = first.runs
    record = dense.folder.record()
    record["curve"][-1]["weights"] = "0" * 16  # as if trained elsewhere
    store.write_json(dense.folder / "run.json", store.sealed(record))
    [stopped] = study.follow([chain()], stored=True)
    assert "slt at sparsity 0.5 is not trained yet" in stopped.reason and stopped.runs == [dense]
    said = f"run {child.id[:12]}: it was made from other weights of run {dense.id[:12]}, which was trained again since"
    assert said in capsys.readouterr().err
    study.store.remove(dense.id)  # and trained again here, it has its old weights: the children are its own
    [again] = study.follow([chain()])
    assert [run.id for run in again.runs] == [run.id for run in first.runs]
    assert capsys.readouterr().err.count("step 12/12") == 1


# Averages ------------------------------------------------------------


def test_checkpoints_may_be_averaged(all_runs):
    for run in (all_runs["slt"][1], all_runs["mp"][2]):
        nine, twelve = run.theta(9), run.theta(12)
        found = run.weights("average 2")
        for name in found:
            torch.testing.assert_close(found[name], (nine[name] + twelve[name]) / 2)
        assert all(not found[matrix][~kept].any() for matrix, kept in run.mask.items())
        assert score_id(run, "test", "average 2") != score_id(run, "test") == score_id(run, "test", "best")


def test_rewinding_to_the_start_of_a_constant_ticket(all_runs):
    run = all_runs["clt"][2]
    assert same(run.rewind(at=0).start().weights, run.theta(0))
    assert not same(run.rewind(at=0).start().weights, all_runs["lt"][2].theta(0))


def test_kinds_of_training(all_runs):
    kinds = {name: [run.ticket.trained_with for run in runs] for name, runs in all_runs.items()}
    assert kinds["mp"] == ["mp"] * 3 and kinds["lt"] == ["dense", "lt", "lt", "lt"]
    assert kinds["slt"] == ["dense", "slt", "slt", "slt"] and kinds["clt"] == ["dense", "clt", "clt", "clt"]
    assert kinds["slt-mp"] == ["dense", "slt", "slt", "mp"] and kinds["mp-slt"] == ["mp", "slt", "slt"]


def test_chains_share_what_they_can_and_train_it_once(make_study, monkeypatch):
    study, trained, real = make_study(), [], training.train

    def noted(settings, data, start, *rest, **options):
        trained.append((start.seed, start.depth, start.gradual))
        return real(settings, data, start, *rest, **options)

    monkeypatch.setattr(training, "train", noted)
    recipes = [(lt, {}), (slt, {"rewind": REWIND}), (mp, {}), (slt_mp, {"rewind": REWIND})]
    chains = [study.chain(recipe, 1, [0.5, 0.8], **knobs) for recipe, knobs in recipes]
    study.follow(chains)
    # wave by wave: dense and both of mp; lt's and slt's 50%; lt's and slt's 80%, slt-mp's 80%
    assert trained[:3] == [(1, 0, None), (1, 0, (0.0, 0.5)), (1, 0, (0.0, 0.8))]
    assert sorted(trained[3:], key=str) == sorted(
        [(1, 1, None)] * 2 + [(1, 2, None)] * 2 + [(1, 2, (0.6, 0.8))], key=str
    )
    assert [[run.sparsity for run in chain.runs] for chain in chains] == [
        [0, 0.5, 0.8], [0, 0.5, 0.8], [0.5, 0.8], [0, 0.5, 0.8],
    ]  # fmt: skip
    assert [(chain.technique, chain.variant, chain.seed) for chain in chains[:2]] == [
        ("lt", "", 1),
        ("slt", "rewind=0.25", 1),
    ]


LISTED = [
    (mp_slt, {}, [0.8]),  # MP has the row at 60%
    (slt_mp, {"stepwise": True}, [0, 0.5, 0.6, 0.8]),
    (clt_control, {"at": 0.6, "signs": "random"}, [0, 0.6]),
    (slt_control, {"at": 0.6, "control": "weights"}, [0, 0.6]),
    (slt_control, {"control": "none"}, [0, 0, 0, 0]),
]


@pytest.mark.parametrize(("recipe", "knobs", "sparsities"), LISTED)
def test_only_what_is_marked_is_left_out(recipe, knobs, sparsities, study):
    [chain] = study.follow([study.chain(recipe, 1, LEVELS, rewind=REWIND, **knobs)])
    assert [run.sparsity for run in chain.runs] == sparsities


def random_tickets(study, seed, levels, at=0.25):
    """A recipe as a reader may write it in a notebook."""
    run = yield study.ticket(seed)
    for sparsity in levels:
        run = yield run.rewind(at=at).prune_randomly(sparsity)


def test_a_recipe_of_one_s_own(make_study, home, monkeypatch):

    def followed():
        study = make_study()
        by_hand = random_tickets(study, 1, [0.5, 0.8])
        chains = study.follow(
            [by_hand, study.chain(random_tickets, 1, [0.5], at=0), study.chain(slt, 1, [0.5], rewind=0.25)]
        )
        return chains, results.record(study, chains)

    chains, rows = followed()
    labels = list(rows[["technique", "variant", "sparsity", "trained_with"]].itertuples(index=False, name=None))
    assert labels == [
        ("dense", "", "0", "dense"),
        ("random-tickets", "", "0.5", "slt"),
        ("random-tickets", "", "0.8", "slt"),
        ("random-tickets", "at=0", "0.5", "lt"),
        ("slt", "rewind=0.25", "0.5", "slt"),
    ]
    assert set(rows.status) == {"ok"} and rows.run.nunique() == 5 and rows.bleu.notna().all()
    assert rows.kept.tolist()[1:3] == [masks.kept(run.mask) for run in chains[0].runs[1:]]
    parts = home / "figures" / "tiny" / "parts"
    before = {path.name: path.read_bytes() for path in parts.iterdir()}
    assert "en-de.random-tickets.default.0.8.1.json.gz" in before
    # Again, by another process as it were: nothing is trained or decoded, the rows are the same.
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    monkeypatch.setattr(scores, "translate", refuse)
    assert followed()[1].equals(rows)
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == before


def test_recording_again_trains_nothing(make_study, home, monkeypatch):
    # As the ablations that rewind to 0.025 and 0.075: those checkpoints are not in `keep`.
    study = make_study()
    chains = study.follow([study.chain(slt, 1, [0.5], rewind=0.5)])
    rows = results.record(study, chains)
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    assert results.record(study, chains).equals(rows)


def test_every_run_of_a_recipe_has_its_row(study, home):
    def trained_twice(study, seed, levels):
        run = yield study.ticket(seed)
        run = yield run.rewind(at=0.25).prune(by=run, sparsity=0.5)
        yield run.rewind(at=0.25)  # once more under the same mask

    chains = study.follow([trained_twice(study, 1, [])])
    assert sorted(results.record(study, chains).run) == sorted(run.id for run in chains[0].runs)


def test_a_chain_that_fails_stops_alone(make_study, monkeypatch):
    study, real = make_study(), training.train

    def fragile(settings, data, start, *rest, **options):
        with pytest.MonkeyPatch.context() as patch:
            if start.seed == 2 and start.depth == 1:
                patch.setattr(training._Loss, "forward", lambda *_: torch.tensor(math.nan))
            return real(settings, data, start, *rest, **options)

    monkeypatch.setattr(training, "train", fragile)
    chains = study.follow([study.chain(slt, seed, [0.5, 0.8], rewind=REWIND) for seed in (2, 1)])
    assert [run.sparsity for run in chains[1].runs] == [0, 0.5, 0.8] and chains[1].reason == ""
    assert [run.sparsity for run in chains[0].runs] == [0, 0.5]
    broken = chains[0].runs[1]
    assert chains[0].reason == f"run {broken.id[:12]} failed: loss not finite at step 1"
    rows = results.record(study, chains).set_index(["seed", "sparsity"]).sort_index()
    assert rows.status.to_dict() == {
        (1, "0"): "ok",
        (1, "0.5"): "ok",
        (1, "0.8"): "ok",
        (2, "0"): "ok",
        (2, "0.5"): "failed",
    }
    assert rows.reason[2, "0.5"] == "loss not finite at step 1" and math.isnan(rows.bleu[2, "0.5"])
    # A failure is a result: it is kept, not tried again.
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    [again] = study.follow([study.chain(slt, 2, [0.5, 0.8], rewind=REWIND)])
    assert again.reason == chains[0].reason


def test_a_chain_stops_at_a_failed_run_that_its_recipe_does_not_look_at(make_study, monkeypatch):
    def stubborn(study, seed, levels):
        yield study.ticket(seed)
        yield study.ticket(seed).gradual(final=0.5)

    study = make_study({"training": {"peak_lr": {"adafactor": 1e30}}})
    called = []
    [chain] = study.follow([study.chain(stubborn, 1)], done=lambda chain, run: called.append(run.id))
    [dense] = chain.runs
    assert chain.reason == f"run {dense.id[:12]} failed: {dense.record['reason']}" and called == [dense.id]
    assert "not finite" in dense.record["reason"]


def test_a_mistake_in_a_recipe_is_told(study):
    def falling(study, seed, levels):
        run = yield study.ticket(seed)
        for sparsity in reversed(levels):
            run = yield run.rewind(at=0.25).prune(by=run, sparsity=sparsity)

    with pytest.raises(InputError, match="levels must rise"):
        study.follow([falling(study, 1, [0.5, 0.8])])


def test_the_study_s_own_levels_and_seeds(study):
    assert study.levels == LEVELS and study.seeds == [1, 2]
    chain = study.chain(mp, 1)
    assert [ticket.sparsity for ticket in next(chain.generator)] == LEVELS


def test_levels_that_lead_elsewhere_are_a_variant_of_their_own(make_study, home, monkeypatch):
    # The study has 50, 60 and 80%. SLT straight to 80% is another training than SLT's row at 80%; MP's is the same.
    study = make_study()
    own = results.record(study, study.follow([study.chain(recipe, 1) for recipe in (slt, mp)]))
    parts = {path.name: path.read_bytes() for path in (home / "figures" / "tiny" / "parts").iterdir()}
    chains = [study.chain(recipe, 1, [0.8]) for recipe in (slt, mp)]
    chains += [study.chain(slt, 1, [0.5, 0.6, 0.7]), study.chain(slt_mp, 1, [0.8])]
    other = results.record(study, study.follow(chains))
    shown = set(other[["technique", "variant", "sparsity"]].itertuples(index=False, name=None))
    assert shown == {
        ("dense", "", "0"),
        ("slt", "levels=0.8", "0.8"),
        ("mp", "", "0.8"),
        ("slt", "", "0.5"),
        ("slt", "", "0.6"),
        ("slt", "", "0.7"),  # a level more: reached as the study would
        ("slt-mp", "", "0.5"),
        ("slt-mp", "", "0.8"),
    }
    assert {
        path.name: path.read_bytes() for path in (home / "figures" / "tiny" / "parts").iterdir()
    }.items() >= parts.items()
    assert not set(other[other.variant != ""].run) & set(own.run)


def test_a_recipe_that_looks_into_its_runs_can_be_labelled(make_study, home, monkeypatch):

    def careful(study, seed, levels):
        run = yield study.ticket(seed)
        for sparsity in levels:
            if run.curve[-1]["dev_bleu"] > -2:
                run = yield run.rewind(at=1.0).prune(by=run, sparsity=sparsity)

    study = make_study()
    rows = results.record(study, study.follow([study.chain(careful, 1, [0.6])]))
    assert set(rows.variant) == {"", "levels=0.6"}


@pytest.mark.parametrize("pruned", ["zeroed", "stale"])
def test_a_ticket_starts_from_its_kept_weights_alone(make_study, monkeypatch, pruned):
    # FACTS.md section 7: theta_t (.) m and alpha * signs (.) m, also where a training keeps what it prunes.
    study = make_study({"training": {"pruned": pruned}})
    for chain in study.follow([study.chain(recipe, 1, [0.5, 0.8]) for recipe in (lt, slt, clt, slt_mp)]):
        for run in chain.runs[1:]:
            start = run.ticket.start()
            assert start.mask and all(
                bool((start.weights[name][~kept] == 0).all()) for name, kept in start.mask.items()
            )


def test_only_checkpoints_at_the_final_sparsity_are_averaged(make_study, monkeypatch):
    # Checkpoints after 3, 6, 9 and 12 steps; gradual pruning ends at 6, whose own update comes after that step.
    study = make_study()
    plain, gradual = study.train([study.ticket(1), study.ticket(1).gradual(0.8)])
    mean = {name: torch.stack([gradual.theta(step)[name] for step in (9, 12)]).mean(0) for name in gradual.mask}
    for name, kept in gradual.mask.items():
        average = gradual.weights("average 4")[name]
        assert torch.equal(average, mean[name]) and not average[~kept].any()
    every = torch.stack([plain.theta(step)["decoder.0.self_attention.query"] for step in (3, 6, 9, 12)]).mean(0)
    assert torch.equal(plain.weights("average 4")["decoder.0.self_attention.query"], every)
    assert len({score_id(gradual, "test", f"average {count}") for count in (1, 2, 3, 4)}) == 4
