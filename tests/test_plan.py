"""The plan compared with a real run, with the paper's counts, and with independent computations of its numbers."""

import ast
import textwrap
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slt_lib import plan, techniques
from slt_lib.__main__ import main
from slt_lib.base import settings as params
from slt_lib.base.seeds import stream
from slt_lib.base.settings import load
from slt_lib.base.store import Store
from slt_lib.data import corpora, wmt14
from slt_lib.report.data import Figures
from slt_lib.train import loop as training
from slt_lib.train.state import TrainState
from slt_lib.transformer import Batch, Shape, SoftmaxLoss

ROOT = Path(__file__).parents[1]


def table(said: str) -> dict[str, dict[str, str]]:
    """The rows of the first printed table, by technique."""
    lines = said.split("\n\n")[1].splitlines()
    head = lines[0].split()
    return {line.split()[0]: dict(zip(head, line.split(), strict=False)) for line in lines[1:]}


@pytest.fixture
def planned(capsys):
    def command(*arguments) -> str:
        capsys.readouterr()
        assert main(["plan", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return command


@pytest.fixture
def offline(monkeypatch):
    """Opening a corpus or downloading one is an error."""

    def never(*_, **__):
        raise AssertionError("a plan opens no corpus")

    for room, name in ((wmt14, "corpus"), (wmt14, "_test_set"), (corpora, "find"), (corpora, "multi30k")):
        monkeypatch.setattr(room, name, never)


@pytest.mark.parametrize(("study", "first"), [("wmt14-en-de", 64), ("wmt14-en-fr", 45)])
def test_number_of_the_papers_trainings(study, first, home, offline):
    """FACTS.md section 7, cost: dense 1, MP, LT, SLT, CLT 12 each, SLT-MP 8, MP-SLT 7 beside its MP run."""
    pair = study.removeprefix("wmt14-")
    planned = plan.Planned(study, pair)
    rows = {row.technique: row for row in plan.rows(planned)}
    wanted = {"dense": 1, "mp": 12, "lt": 12, "slt": 12, "clt": 12, "slt-mp": 8, "mp-slt": 7}
    wanted = {name: wanted[name] for name in ["dense", *load(study).pairs[pair]]}
    assert {name: len(row.tickets) / 2 for name, row in rows.items() if name != "ablations"} == wanted
    assert sum(wanted.values()) == first
    assert {name: row.waves for name, row in rows.items()} | {"ablations": 6} == {
        **dict.fromkeys(wanted, 13),
        **{name: waves for name, waves in {"dense": 1, "mp": 1, "slt-mp": 3, "mp-slt": 8}.items() if name in wanted},
        "ablations": 6,
    }
    if "ablations" in rows:  # random signs; three rewind points to 50%; Adam's dense run, MP and SLT to 50%
        assert len(rows["ablations"].tickets) / 2 == 1 + 3 * 5 + 1 + 5 + 5
    assert not planned.prepared and not planned.done and not (home / "runs").exists()


def test_unknown_numbers_without_the_corpus(home, offline, planned):
    said = planned("wmt14-en-de", "--rate", 30_000, "--gpus", 8)
    assert table(said)["slt"]["done"] == table(said)["slt"]["left"] == "?"
    assert "done, left: not known" in said and "data wmt14-en-de" in said
    training_hours = 500_000 * 64 * 256 / 30_000 / 3600
    assert f"a training: {training_hours:.3g} h" in said
    assert table(said)["total"]["path"] == f"{13 * training_hours:,.0f}"
    assert table(said)["dense"]["dev"] == f"{2 * 20 * 3000:,}" and table(said)["dense"]["test"] == f"{2 * 5740:,}"
    said = planned("multi30k")
    assert table(said)["slt"]["dev"] == "?" and "hours: pass --rate" in said


def test_multi30k_is_at_hand_if_all_files_are(home, monkeypatch):
    monkeypatch.setenv("SLT_DATA", str(home))
    names = [name for name in corpora.MULTI30K_SHA256 if ".fr." not in name]
    for folder, some in (("multi30k", names[::2]), ("cache/slt_lib/multi30k", names[1::2])):
        assert not corpora.multi30k_at_hand("en-de")
        (home / folder).mkdir(parents=True)
        for name in some:
            (home / folder / name).touch()
    assert corpora.multi30k_at_hand("en-de") and not corpora.multi30k_at_hand("en-fr")


def test_a_plan_is_what_a_run_trains(home, study_file, planned, monkeypatch):
    """Before the run all trainings are left, afterwards none; every planned ticket is stored in the planned size."""
    study = study_file({"seeds": [1], "levels": [0.5, 0.7]})
    before = table(planned(study))
    count = int(before["total"]["trainings"])
    # dense; two each of MP, LT, SLT, CLT; one of SLT-MP from SLT's 50%; three of MP-SLT: MP to 60%, SLT at 60%, 70%
    assert count == 1 + 4 * 2 + 1 + 3 and before["total"]["left"] == f"{count}" and before["total"]["done"] == "0"
    assert main(["run", study, "--no-report"]) == 0
    assert not (home / "figures" / "tiny" / "report.html").exists()
    assert len(Store().ids()) == count
    said = planned(study)
    after = table(said)
    assert after["total"]["left"] == "0" and after["total"]["done"] == f"{count}"
    assert f"median of {count} finished runs" in said

    found = plan.Planned(study)
    plan.rows(found)
    assert sorted(found.runs) == Store().ids()
    for train_id, run in found.runs.items():
        ticket = run.ticket
        files = Store().folder(train_id).record()["files"]
        on_disk = sum((Store().path / train_id / name).stat().st_size for name in files)
        steps = found.params.kept_steps() | found.keep.get(train_id, set())
        missing = len(steps) + 3 - len(files) - (not ticket.sparsity)  # best, last, mask: the best may be one of these
        planned_size = on_disk + missing * 4 * sum(weight.numel() for weight in found.outline.parameters())
        assert missing in (0, 1) and planned_size == pytest.approx(plan.disk(found, ticket)[0], rel=0.2)


def test_a_recipe_may_read_stored_runs(make_study, study_file, monkeypatch):
    """A plan too can read their weights and masks to decide on the next training."""

    def look(study, seed, levels):
        run = yield study.ticket(seed)
        run = yield run.rewind(at=0.25).prune(by=run, sparsity=0.5)
        weights = run.weights()
        zeros = sum(int((weights[name] == 0).sum()) for name in run.mask)
        kept = sum(int(kept.sum()) for kept in run.mask.values())
        yield run.rewind(at=0.25).prune(by=run, sparsity=round(0.5 + 0.5 * zeros / (zeros + kept), 2))

    study = make_study()
    [trained] = study.follow([study.chain(look, 1)])
    planned = plan.Planned(study_file())
    [chain] = planned.follow([planned.chain(look, 1)])
    assert [run.id for run in chain.runs] == [run.id for run in trained.runs]
    assert [run.sparsity for run in chain.runs] == [0, 0.5, 0.75] and len(planned.done) == 3
    assert planned.find(chain.runs[1].ticket).weights().keys() == study.shapes.keys()


def test_a_failed_run_ends_its_chain(home, study_file, planned):
    """The later trainings of the chain are not counted as left."""
    loud = {"steps": 2, "peak_lr": {"adafactor": 1e30, "adam": 1e30}}
    study = study_file({"seeds": [1], "levels": [0.5], "pairs": {"en-de": ["slt"]}, "training": loud})
    assert main(["run", study, "--no-report"]) == 0
    [run] = [Store().folder(train_id).record() for train_id in Store().ids()]
    assert run["status"] == "failed"
    assert table(planned(study))["total"]["left"] == "0"


@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
@pytest.mark.parametrize("stale", ["zeroed", "stale"])
def test_disk_space_of_a_running_training(optimizer, stale, study_file, monkeypatch):
    """Compared with a real resume state."""
    study = plan.Planned(study_file({"training": {"pruned": stale, "optimizer": optimizer}}))
    [ticket] = [ticket for ticket in plan.rows(study)[1].tickets.values() if (ticket.seed, ticket.sparsity) == (1, 0.5)]
    model = training.new_model(study.params.training, 120, 1)
    weights = dict(model.named_parameters())
    made = training.new_optimizer(study.params.training, optimizer, weights.values())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    made.step()
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in plan.prunable(weights).items()}
    split = {name: torch.zeros_like(weight) for name, weight in mask.items()}
    left = {name: torch.zeros(value.shape) for name, value in split.items()} if stale == "stale" else {}
    statistics = {name: made.state[weight] for name, weight in weights.items()}
    tensors = TrainState(None, weights, mask, statistics, left).tensors()
    written = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    theta = sum(4 * weight.numel() for weight in weights.values())
    assert plan.disk(study, ticket)[1] == pytest.approx(2 * written + theta, abs=1000)  # Adam counts its steps


@pytest.mark.parametrize(
    ("layers", "hidden", "inner", "heads", "rows", "length"), [(1, 16, 32, 2, 8, 24), (2, 32, 48, 4, 3, 40)]
)
def test_flops_match_torchs_counter(layers, hidden, inner, heads, rows, length):
    shape = Shape(50, layers, hidden, inner, heads)
    model = training.Transformer(shape, 1)
    ids = torch.from_numpy(stream(1, "flops").integers(3, 50, size=(rows, length)))
    ones, positions = torch.ones_like(ids), torch.arange(length).expand(rows, length)
    with FlopCounterMode(display=False) as counter:
        hidden_states = model(Batch(ids, ones, positions, ids, ones, positions, ids))
        SoftmaxLoss.apply(hidden_states, model.embedding, ids, 0.1, torch.float32).backward()
    assert counter.get_total_flops() == plan.flops(model, rows, length)


def ticket(*parents: str):
    class Stub:
        runs, depth = dict.fromkeys(parents), 0

    return Stub


@pytest.mark.parametrize(("devices", "rounds"), [(1, 7), (2, 4), (3, 4), (9, 4)])
def test_makespan(devices, rounds):
    """A chain of four and three independent tickets: the chain goes first, and a finished parent is not waited for."""
    tickets = {"a": ticket("done"), "b": ticket("a"), "c": ticket("b"), "d": ticket("c")}
    for depth, each in enumerate(tickets.values()):
        each.depth = depth
    tickets |= {name: ticket() for name in "xyz"}
    assert plan.makespan(tickets, devices) == rounds
    assert plan.makespan({}, devices) == 0


def test_measure(study_file, planned):
    said = planned(study_file(), "--measure")
    assert "measured over 12 steps of 8 x 48 on " in said and "fewer rows" not in said
    study = plan.Planned(study_file())
    rate, how = plan.measure(study, seconds=1e-9)
    assert rate > 0 and "steps of 1 x 48 on" in how and how.endswith("fewer rows than the study's 8")


def test_notebook_08_and_the_plan_have_the_same_comparisons():
    notebook = nbformat.read(ROOT / "notebooks" / "08_ablations.ipynb", as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert tuple(values["comparisons"]) == techniques.ABLATIONS and values["at"] == techniques.ABLATION_LEVEL
    default = techniques.comparisons([0.5, 0.8])
    knobs = {name: values[name] for name in ("at", "rewinds", "switches", "high")}
    assert techniques.comparisons([0.5, 0.8], **knobs) == default
    [text] = [cell.source for cell in notebook.cells if "| name | what is compared |" in cell.source]
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(default)
    assert set(params.COMPARISONS) == set(default)  # what a study file may name


def test_plan_of_the_comparisons_in_the_study_file(home, study_file):
    rows = {row.technique: row for row in plan.rows(plan.Planned(study_file({"ablations": ["signs", "again"]})))}
    assert len(rows["ablations"].tickets) / 2 == 1 + 3  # random signs, and the dense run again at every level


@pytest.mark.parametrize("name", ["quick", "multi30k", "multi30k-large", "wmt14-en-de"])
def test_every_comparison_compares_two_trainings(name):
    """At some sparsity each variant has another training than the default it is compared with."""
    study = plan.Planned(name)

    def trained(line):
        [chain] = study.follow([study.chain(line.recipe, 1, line.levels, line.label, line.scored, **line.knobs)])
        return chain.technique, {run.sparsity: run.id for run in chain.runs}

    for comparison, lines in techniques.comparisons(study.levels).items():
        defaults = dict(map(trained, (line for line in lines if not line.knobs)))
        for line in lines if comparison not in ("stability", "subnetworks") else ():
            technique, runs = trained(line)
            beside = defaults[technique]
            told = [level for level in runs if level in beside and runs[level] != beside[level]]
            assert told or not line.knobs, (comparison, line)


def test_random_masks_are_trained_as_often_as_slts(study_file):
    study = plan.Planned(study_file({"levels": [0.3, 0.4, 0.5]}))
    plain, control = study.follow(
        [study.chain(techniques.slt, 1), study.chain(techniques.slt_control, 1, control="mask", at=0.5)]
    )
    assert [run.sparsity for run in control.runs] == [0, 0.5] and control.runs[-1].ticket.depth == 3
    assert plain.runs[-1].ticket.depth == 3 and not set(run.id for run in plain.runs[1:]) & {control.runs[-1].id}


@pytest.mark.parametrize("name", ["quick", "multi30k"])
def test_the_report_knows_the_depth_of_each_cell(name):
    """Each cell is compared with a dense model that was trained as often; LT's weights are theta_0 at every level."""
    study = plan.Planned(name)
    levels = SimpleNamespace(levels=study.levels)
    for technique in study.params.pairs[study.pair]:
        [chain] = study.follow([study.chain(techniques.RECIPES[technique], 1)])
        for run in chain.runs:
            depth = 0 if technique == "lt" else run.ticket.depth
            assert Figures.depth(levels, technique, run.sparsity) == depth, (technique, run.sparsity)


def test_the_technique_in_the_readme():
    text = (ROOT / "README.md").read_text()
    code = text[text.index("    def halves(") : text.index("    chains = study.follow(")]
    scope = {}
    exec(textwrap.dedent(code), scope)
    study = plan.Planned("quick")
    [chain] = study.follow([study.chain(scope["halves"], 1)])
    assert [run.sparsity for run in chain.runs] == [0, 0.5, 0.75, 0.875, 0.9375, 0.96875]
