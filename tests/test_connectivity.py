"""Barriers between trained copies, against closed forms and the model's own loss."""

import pytest
import torch

from slt_lib.analysis import connectivity
from slt_lib.data.batches import Batches
from slt_lib.report import stability
from slt_lib.study import stability as recorded
from slt_lib.techniques import compared
from slt_lib.transformer import smoothed_cross_entropy, theta_0


@pytest.fixture
def model(session_study):
    model = session_study.model()
    model.load_state_dict(theta_0(model, 1))
    return model


@pytest.fixture
def pairs(session_study):
    data = session_study.data
    return data.source.lists()[:70], data.target.lists()[:70]


def test_the_line_goes_from_one_to_the_other():
    one, other = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([2.0, 0.0])}
    line = [connectivity.between(one, other, share)["w"].tolist() for share in (0.0, 0.25, 1.0)]
    assert line == [[0.0, 4.0], [0.5, 3.0], [2.0, 0.0]]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([1.0, 1.0, 1.0], 0.0), ([1.0, 3.0, 2.0], 1.5), ([2.0, 1.0, 0.0], 1.0), ([5.0, 5.0], 0.0)],
)
def test_the_barrier_in_closed_form(losses, expected):
    assert stability.barrier(losses) == expected


def test_two_identical_copies_have_no_barrier(model, pairs):
    weights = dict(model.named_parameters())
    losses = []
    for share in (0.0, 0.3, 0.5, 1.0):
        model.load_state_dict(connectivity.between(weights, weights, share))
        losses.append(connectivity.loss(model, *pairs))
    assert losses[0] > 1 and stability.barrier(losses) == 0.0


def test_a_line_through_a_quadratic_bowl_has_the_barrier_of_its_chord():
    """f(w) = |w|^2 on the line from -a to b: convex, so its highest point is an end."""
    one, other = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([3.0])}
    values = [float(connectivity.between(one, other, share / 10)["w"].square().sum()) for share in range(11)]
    assert stability.barrier(values) == max(values) - 5.0 == 4.0
    hill = [-value for value in values]
    assert stability.barrier(hill) == pytest.approx(5.0 - min(values), abs=1e-6)


def test_the_loss_is_that_of_the_training_whatever_the_padding(model, session_study, pairs):
    """The same pairs packed into rows as in training, and each pair by itself."""
    data, settings = session_study.data, session_study.params.training.batch
    batch = next(Batches(data.source, data.target, settings.rows, settings.length, seed=1))
    with torch.no_grad():
        packed = float(smoothed_cross_entropy(model.logits(model(batch)), batch.target, 0.0))
    members = []
    for row, segments in zip(batch.target, batch.target_segment, strict=True):
        members += [row[segments == number].tolist() for number in range(1, int(segments.max()) + 1)]
    targets = data.target.lists()
    chosen = [targets.index(ids) for ids in members]
    sources = [data.source.lists()[i] for i in chosen]
    assert connectivity.loss(model, sources, members) == pytest.approx(packed, rel=1e-5)
    whole = connectivity.loss(model, *pairs)
    counts = [len(target) for target in pairs[1]]
    alone = [connectivity.loss(model, [source], [target]) for source, target in zip(*pairs, strict=True)]
    assert whole == pytest.approx(sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts), rel=1e-5)


def test_a_study_s_copies(make_study, home, monkeypatch):
    study = make_study({"seeds": [1], "levels": [0.5]})
    chains = study.follow(compared(study, ["stability"], high=0.5)["stability"])
    recorded.record_stability(study, chains, points=3)
    folder = home / "figures" / "tiny"
    lines = stability.lines(folder, "en-de")
    assert sorted(set(lines.start)) == sorted(stability.STARTS) and len(lines) == 4 * 3 * 3
    runs = {run.id: run for chain in chains for run in chain.runs}
    for row in lines[lines.share.isin([0.0, 1.0])].itertuples():
        end = runs[row.runs.split()[int(row.share)]]
        assert row.dev_bleu == pytest.approx(end.curve[-1]["dev_bleu"], abs=1e-3)  # an end is the run's own theta_T
        assert end.sparsity == row.sparsity
    assert len(stability.barriers(folder, "en-de")) == 12
    assert len(stability.plot_stability(folder, "en-de").axes) == 8
    shown = stability.table(folder, "en-de")
    assert shown.count("\n| ") == 1 + 4 and "\n| LT ticket | 50% | 3 |" in shown
    before = (folder / "stability.csv").read_bytes()
    monkeypatch.setattr(connectivity, "loss", None)  # measured once
    recorded.record_stability(study, chains[::-1], points=3)
    assert (folder / "stability.csv").read_bytes() == before
    monkeypatch.setitem(chains[0].runs[-1].record, "status", "failed")  # a copy that diverged has no line
    recorded.record_stability(study, chains, points=3)
    left = stability.lines(folder, "en-de")
    assert len(left) == len(lines) - 2 * 3 and chains[0].runs[-1].id not in " ".join(left.runs)
