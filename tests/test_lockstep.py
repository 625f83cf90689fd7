"""Lockstep against solo: a ticket ends where it would end alone, whatever its neighbours are and wherever it is cut."""

import json
import math

import pytest
import torch

from slt_lib import masks, schedules, transformer
from slt_lib.adafactor import Adafactor
from slt_lib.base.errors import InputError
from slt_lib.base.settings import PeakRate
from slt_lib.base.store import RESUME, RunFolder
from slt_lib.data.batches import Batches
from slt_lib.evaluation import decoding
from slt_lib.study.scores import magnitudes
from slt_lib.techniques import mp, slt
from slt_lib.train import lockstep
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import weights_hash
from slt_lib.train.lockstep import train_together
from slt_lib.train.loop import Start, train
from slt_lib.train.stack import EAGER, Stack
from slt_lib.train.state import TrainState
from slt_lib.transformer import dropout_masks, dropout_sites, glorot, prunable, smoothed_cross_entropy, theta_0

STEPS = 12


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("SLT_DEVICE", "cpu")


@pytest.fixture(scope="module")
def study(session_study):
    return session_study


@pytest.fixture(scope="module")
def data(study):
    return study.data


@pytest.fixture(scope="module")
def settings(study):
    return study.params.training


@pytest.fixture(scope="module")
def starts(study):
    """Tickets unlike each other in seed, mask, schedule, depth and kind of start; the optimizer is asked for."""

    def make(optimizer="adafactor"):
        def start(seed, depth=0, sparsity=0.0, gradual=None, constant=False):
            weights = theta_0(study.model(), seed)
            mask = masks.magnitude_mask(prunable(weights), sparsity) if sparsity else None
            if constant:
                weights |= {name: torch.sign(w) * glorot(w) for name, w in prunable(weights).items()}
            return Start(weights, mask, gradual, optimizer, seed, depth)

        return [
            start(1),
            start(1, depth=1, sparsity=0.5),
            start(2, gradual=(0.0, 0.8)),
            start(2, depth=2, sparsity=0.3, gradual=(0.3, 0.9)),
            start(3, depth=1, sparsity=0.7, constant=True),
        ]

    return make


def folders(path, count):
    return [RunFolder(path / str(i)) for i in range(count)]


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def distance(one, other):
    """The largest difference between two mappings of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def apart(one, other, record):
    """The largest difference between the weights in two folders."""
    files = [name for name in record["files"] if name.startswith("theta")]
    return max(distance(one.load(name)[0], other.load(name)[0]) for name in files)


# Against solo ------------------------------------------------------------


def plain(settings, data, start, steps):
    """The training in its plainest form: model, loss, optimizer, masks; nothing of `train` or `lockstep`."""
    model = training.new_model(settings, len(data.vocabulary))
    weights = dict(model.named_parameters())
    shape, sizes = settings.batch, settings.model
    batches = Batches(data.source, data.target, shape.rows, shape.length, start.seed, str(start.depth))
    sites = dropout_sites(model.shape, shape.rows, shape.length, shape.length)
    rates = {"residual": sizes.residual_dropout, "attention": sizes.attention_dropout, "relu": sizes.relu_dropout}
    warmup = round(settings.warmup * settings.steps)
    if start.optimizer == "adam":
        optimizer = torch.optim.Adam(weights.values(), betas=(0.9, 0.997), eps=1e-9)
    else:
        optimizer = Adafactor(weights.values(), warmup, settings.peak_lr.adafactor)
    updates = schedules.every(settings.gradual.every, settings.gradual.until, settings.steps)
    mask = start.mask or {}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(start.weights[name])
            if name in mask:
                weight *= mask[name]
    for step in range(steps):
        for group in optimizer.param_groups:
            if start.optimizer == "adam":
                group["lr"] = schedules.learning_rate(step, warmup, settings.peak_lr.adam, ramp=True)
        batch = next(batches)
        logits = model.logits(model(batch, dropout_masks(sites, rates, start.seed, str(start.depth), step)))
        optimizer.zero_grad()
        smoothed_cross_entropy(logits, batch.target, settings.label_smoothing).backward()
        with torch.no_grad():
            for name in mask:
                weights[name].grad *= mask[name]
            optimizer.step()
            if start.gradual and step + 1 in updates:
                wanted = schedules.gradual_sparsity(step + 1, *start.gradual, updates[-1])
                mask = masks.magnitude_mask(prunable(weights), wanted, mask or None)
            for name in mask:
                weights[name] *= mask[name]
    return {name: weight.detach() for name, weight in weights.items()}, mask


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
def test_fifty_steps_in_float64(optimizer, study, data, settings, starts, float64, tmp_path):
    settings = settings.model_copy(update={"steps": 50, "checkpoint": 1.0})
    tickets = starts(optimizer)
    found = folders(tmp_path, len(tickets))
    records = train_together(settings, data, tickets, found)
    for start, folder, record in zip(tickets, found, records, strict=True):
        wanted, mask = plain(settings, data, start, 50)
        weights = folder.load(RunFolder.theta(50))[0]
        assert weights["embedding"].dtype == torch.float64
        assert not torch.equal(weights["embedding"], start.weights["embedding"].double())
        assert distance(weights, wanted) < 1e-9
        if mask:
            assert distance(folder.load("mask.safetensors")[0], mask) == 0
            assert record["kept"] == masks.kept(mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
def test_fifty_steps_in_float64_on_a_gpu(optimizer, study, data, settings, starts, float64, tmp_path, monkeypatch):
    """Against the same oracle on the CPU; every stack must have been captured as a graph."""
    graphs, real = [], Stack.step

    def step(self, *arguments):
        found = real(self, *arguments)
        graphs.append(self.graph)
        return found

    monkeypatch.setattr(Stack, "step", step)
    settings = settings.model_copy(update={"steps": 50, "checkpoint": 0.5})
    tickets = starts(optimizer)
    monkeypatch.setenv("SLT_DEVICE", "cuda")
    found = folders(tmp_path, len(tickets))
    train_together(settings, data, tickets, found)
    assert graphs[:EAGER] == [None] * EAGER and all(graphs[EAGER:])
    monkeypatch.setenv("SLT_DEVICE", "cpu")
    for start, folder in zip(tickets, found, strict=True):
        assert distance(folder.load(RunFolder.theta(50))[0], plain(settings, data, start, 50)[0]) < 1e-9


@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
def test_ten_steps_against_the_trainer(optimizer, data, settings, starts, tmp_path):
    settings = settings.model_copy(update={"steps": 10})
    tickets = starts(optimizer)
    alone, together = folders(tmp_path / "alone", len(tickets)), folders(tmp_path / "together", len(tickets))
    wanted = [train(settings, data, start, folder, (3, 4)) for start, folder in zip(tickets, alone, strict=True)]
    found = train_together(settings, data, tickets, together, [(3, 4)] * len(tickets))
    for start, one, other, want, got in zip(tickets, alone, together, wanted, found, strict=True):
        assert apart(one, other, want) < 1e-4
        assert names(one) == names(other) and other.record() == got
        same = {key: value for key, value in want.items() if key not in ("curve", "files")}
        assert same == {key: value for key, value in got.items() if key not in ("curve", "files")}
        for a, b in zip(want["curve"], got["curve"], strict=True):
            assert a == b | {name: a[name] for name in ("loss", "weights")}
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        end = other.load(RunFolder.theta(10))[0]
        assert got["curve"][-1]["weights"] == weights_hash(end)  # the run's own, also in lockstep
        if start.mask is not None and not start.gradual:
            assert (one / "mask.safetensors").read_bytes() == (other / "mask.safetensors").read_bytes()
        known = json.loads((other / "provenance.json").read_text())
        assert known.keys() == json.loads((one / "provenance.json").read_text()).keys() and known["seconds"] > 0


def test_low_precision(data, settings, starts, tmp_path):
    settings = settings.model_copy(update={"steps": 4, "precision": "bf16"})
    tickets = starts()[:2]
    found = train_together(settings, data, tickets, folders(tmp_path / "together", 2))
    for start, folder, record in zip(tickets, folders(tmp_path / "alone", 2), found, strict=True):
        wanted = train(settings, data, start, folder)
        for a, b in zip(wanted["curve"], record["curve"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=0.02)


def test_low_precision_is_low(data, settings, starts, tmp_path, monkeypatch):
    """Autocast reaches the model under vmap: its matrix products are of the low type."""
    kinds, real = set(), transformer.linear
    monkeypatch.setattr(transformer, "linear", lambda *a: kinds.add((y := real(*a)).dtype) or y)
    monkeypatch.setattr(Stack, "translate", lambda self, sources, extra: [[[3]] * len(sources)])
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        low = settings.model_copy(update={"steps": 2, "precision": precision, "checkpoint": 1.0})
        train_together(low, data, starts()[:1], folders(tmp_path / precision, 1))
        assert kinds == {kind}
        kinds.clear()


def test_no_dropout_and_no_mask(data, settings, starts, tmp_path):
    rates = {f"{kind}_dropout": 0.0 for kind in ("residual", "attention", "relu")}
    model = settings.model.model_copy(update=rates)
    settings = settings.model_copy(update={"steps": 4, "model": model})
    start, [one, other] = starts()[0], folders(tmp_path, 2)
    record = train(settings, data, start, one)
    train_together(settings, data, [start], [other])
    assert apart(one, other, record) < 1e-4


def test_stale_weights_are_trained_alone(data, settings, starts, tmp_path):
    settings = settings.model_copy(update={"pruned": "stale"})
    start, [one, other] = starts()[1], folders(tmp_path, 2)
    train(settings, data, start, one)
    train_together(settings, data, [start], [other])
    assert (one / "run.json").read_bytes() == (other / "run.json").read_bytes()


def test_two_optimizers_are_refused(data, settings, starts, tmp_path):
    with pytest.raises(ValueError, match="one optimizer"):
        train_together(settings, data, [starts()[0], starts("adam")[0]], folders(tmp_path, 2))


# Cuts ------------------------------------------------------------


class Cut(BaseException):
    """A kill."""


def cut_at(step, checkpoint=False):
    done = 0

    def report(steps, point):
        nonlocal done
        done += steps
        if done >= step and (point is not None) == checkpoint:
            raise Cut

    return report


def quiet(steps, point):
    pass


@pytest.fixture(scope="module")
def unbroken(data, settings, starts, tmp_path_factory):
    """Folders and records of a lockstep that nothing cut."""
    tickets = starts()
    found = folders(tmp_path_factory.mktemp("unbroken"), len(tickets))
    return found, train_together(settings, data, tickets, found, [(3, 5)] * len(tickets))


def ends_as(unbroken, found, records):
    for one, other, want, got in zip(unbroken[0], found, unbroken[1], records, strict=True):
        assert names(one) == names(other) and want["files"].keys() == got["files"].keys()
        assert apart(one, other, want) < 1e-5
        assert [point["step"] for point in want["curve"]] == [point["step"] for point in got["curve"]]
        assert want["target_tokens"] == got["target_tokens"]


def test_a_cut_leaves_no_trace(unbroken, data, settings, starts, tmp_path):
    tickets, found = starts(), folders(tmp_path, 5)
    for cut in (cut_at(2), cut_at(6, True), cut_at(8)):  # before any checkpoint, in the midst of one, after it
        with pytest.raises(Cut):
            train_together(settings, data, tickets, found, [(3, 5)] * len(tickets), [quiet, quiet, cut, quiet, quiet])
    steps = [folder.load(RESUME)[1]["step"] if (folder / RESUME).exists() else 0 for folder in found]
    assert max(steps) == 6
    ends_as(unbroken, found, train_together(settings, data, tickets, found, [(3, 5)] * len(tickets)))


def test_those_that_lag_behind_catch_up(unbroken, data, settings, starts, tmp_path):
    """One was cut at step 9, one at 3, one has ended, two have not begun."""
    tickets, found = starts(), folders(tmp_path, 5)
    for i, step in ((0, 9), (2, 3)):
        with pytest.raises(Cut):
            train_together(settings, data, [tickets[i]], [found[i]], [(3, 5)], [cut_at(step, True)])
    with pytest.raises(Cut):  # all steps done, the record not yet written
        train_together(settings, data, [tickets[3]], [found[3]], [(3, 5)], [cut_at(STEPS, True)])
    steps = [folder.load(RESUME)[1]["step"] if (folder / RESUME).exists() else 0 for folder in found]
    assert steps == [9, 0, 3, 12, 0]
    ends_as(unbroken, found, train_together(settings, data, tickets, found, [(3, 5)] * len(tickets)))


@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
def test_solo_and_lockstep_go_on_with_each_other_s_work(optimizer, data, settings, starts, float64, tmp_path):
    tickets, count = starts(optimizer), 5
    whole, first, second = (folders(tmp_path / name, count) for name in ("whole", "first", "second"))
    wanted = [train(settings, data, *pair) for pair in zip(tickets, whole, strict=True)]
    with pytest.raises(Cut):  # lockstep, then solo
        train_together(settings, data, tickets, first, (), [*[quiet] * 4, cut_at(6, True)])
    for start, folder in zip(tickets, second, strict=True):  # solo, then lockstep
        with pytest.raises(Cut):
            train(settings, data, start, folder, report=cut_at(6, True))
    solo = [train(settings, data, *pair) for pair in zip(tickets, first, strict=True)]
    together = train_together(settings, data, tickets, second)
    for i, record in enumerate(wanted):
        assert apart(whole[i], first[i], record) < 1e-6 and apart(whole[i], second[i], record) < 1e-6
        assert solo[i]["target_tokens"] == together[i]["target_tokens"] == record["target_tokens"]


# Failures ------------------------------------------------------------


def test_one_that_diverges_fails_alone(unbroken, data, settings, starts, tmp_path):
    tickets, found = starts(), folders(tmp_path, 7)
    loud = {name: w * 1e30 if w.dim() == 2 else w for name, w in tickets[0].weights.items()}
    full = dict(tickets[2].weights) | {"target_space": torch.full_like(tickets[2].weights["target_space"], math.inf)}
    bad = [Start(loud, None, None, "adafactor", 1, 0), Start(full, None, (0.0, 0.8), "adafactor", 2, 0)]
    order = [bad[0], *tickets[:2], bad[1], *tickets[2:]]
    records = train_together(settings, data, order, found, [(3, 5)] * len(order))
    for i in (0, 3):
        alone = RunFolder(tmp_path / f"alone{i}")
        assert train(settings, data, order[i], alone, (3, 5)) == records[i]
        assert records[i]["status"] == "failed" and "not finite" in records[i]["reason"]
        assert names(alone) == names(found[i])
    good = [1, 2, 4, 5, 6]
    ends_as(unbroken, [found[i] for i in good], [records[i] for i in good])


def test_all_that_diverge(data, settings, starts, tmp_path):
    settings = settings.model_copy(update={"peak_lr": PeakRate(adafactor=1e30)})
    for record in train_together(settings, data, starts(), folders(tmp_path, 5)):
        assert record["status"] == "failed" and "not finite" in record["reason"]


# Decoding ------------------------------------------------------------


def test_translations_are_those_of_each_model_alone(study, data, settings):
    made = []
    for seed in range(4):
        weights = theta_0(study.model(), seed)
        weights["embedding"] *= 1 + seed  # the louder, the sooner some sentences end
        weights["embedding"][decoding.EOS] *= 1.5
        made.append(Start(weights, None, None, "adafactor", seed, 0))
    made[2].weights["embedding"][7] = math.nan
    stack = Stack(settings, len(data.vocabulary), [TrainState.begin(start) for start in made], [0] * 4)
    sources = data.source.lists()[:21]
    found = stack.translate(sources, 8)
    assert found[2] is None  # not a number
    for i in (0, 1, 3):
        model = study.model()
        model.load_state_dict(made[i].weights)
        assert found[i] == decoding.translate(model, sources, 1, extra=8)
    lengths = {len(answer) for answer in found[3]}
    assert len(lengths) > 2  # sentences do end at different steps


def test_a_wider_beam_on_dev(data, settings, starts, tmp_path):
    settings = settings.model_copy(update={"dev_beam": 2, "steps": 4, "checkpoint": 1.0})
    tickets = starts()[:2]
    found = train_together(settings, data, tickets, folders(tmp_path / "together", 2))
    for start, folder, record in zip(tickets, folders(tmp_path / "alone", 2), found, strict=True):
        assert [p["dev_bleu"] for p in train(settings, data, start, folder)["curve"]] == [
            p["dev_bleu"] for p in record["curve"]
        ]


# Study ------------------------------------------------------------


def test_a_study_can_not_tell(make_study, monkeypatch, float64, home):
    # In float64: in fp32 a weight that float error moves across a threshold changes the mask, and all that follows.
    made = [(mp, 1), (mp, 2), (slt, 1), (slt, 2)]
    alone = make_study()
    wanted = alone.follow([alone.chain(recipe, seed, [0.5, 0.8]) for recipe, seed in made])
    monkeypatch.setenv("SLT_RUNS", str(home / "together"))
    monkeypatch.setenv("SLT_LOCKSTEP", "4")
    groups, real = [], lockstep.train_together
    monkeypatch.setattr(
        lockstep, "train_together", lambda *arguments: groups.append(len(arguments[2])) or real(*arguments)
    )
    study = make_study()
    found = study.follow([study.chain(recipe, seed, [0.5, 0.8]) for recipe, seed in made])
    assert groups == [3, 3, 2, 2]  # the first wave has six tickets: two dense, twice two of MP
    for one, other in zip(wanted, found, strict=True):
        assert [run.id for run in one.runs] == [run.id for run in other.runs]
        for a, b in zip(one.runs, other.runs, strict=True):
            assert distance(a.weights(), b.weights()) < 1e-6
            assert a.record["status"] == b.record["status"]
            assert magnitudes(a).keys() == magnitudes(b).keys()


def test_how_many_train_at_once(make_study, monkeypatch):
    settings = make_study().params.training
    monkeypatch.delenv("SLT_LOCKSTEP", raising=False)
    monkeypatch.setenv("SLT_DEVICE", "cpu")
    assert lockstep.group_size(settings, 100) == 1
    monkeypatch.setenv("SLT_LOCKSTEP", "5")
    assert lockstep.group_size(settings, 100) == 5
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lockstep.group_size(settings, 100) == 1
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("SLT_LOCKSTEP", wrong)
        with pytest.raises(InputError, match=f"SLT_LOCKSTEP={wrong}: not a whole number"):
            lockstep.group_size(settings, 100)


def test_groups_are_even_and_of_one_optimizer(make_study):
    from slt_lib.study.study import _groups

    study = make_study()
    tickets = [study.ticket(seed) for seed in range(7)] + [study.ticket(seed, "adam") for seed in range(2)]
    assert [[ticket.seed for ticket in group] for group in _groups(tickets, 3)] == [[0, 1], [2, 3], [4, 5, 6], [0, 1]]
    assert [len(group) for group in _groups(tickets, 1)] == [1] * 9


def test_the_softmax_loss_of_the_trainer_is_the_smoothed_cross_entropy(starts):
    """So that the two trainings, which use one each, have one loss."""
    weights, draw = starts()[0].weights["embedding"], torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 9, weights.shape[1], generator=draw)
    target = torch.randint(0, len(weights), (2, 9), generator=draw)
    wanted = smoothed_cross_entropy(hidden @ weights.t(), target, 0.1)
    found = transformer.SoftmaxLoss.apply(hidden, weights, target, 0.1, torch.float32)
    torch.testing.assert_close(found, wanted)
