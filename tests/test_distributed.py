"""Several processes train as one: losses and weights are those of one process within float error, and one writes.

The file is also what torchrun starts in two processes: `work` below.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import TINY, changed

from slt_lib import masks
from slt_lib.__main__ import main
from slt_lib.base import distributed
from slt_lib.base.errors import InputError
from slt_lib.base.settings import PeakRate
from slt_lib.base.store import RESUME, RunFolder
from slt_lib.study import Study
from slt_lib.techniques import RECIPES
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import weights_hash
from slt_lib.train.loop import Start, replay, train
from slt_lib.transformer import prunable, theta_0

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
LAUNCH += ("--rdzv-endpoint", "localhost:0")  # a free port

# Dropout is on in all of them. Case -> sparsity of the mask, gradual schedule, optimizer, settings.
CASES = {
    "dense": (None, None, "adafactor", {}),
    "sparse": (0.5, None, "adafactor", {}),
    "gradual": (None, (0.0, 0.8), "adafactor", {}),
    "gradual stale": (0.3, (0.3, 0.8), "adafactor", {"pruned": "stale"}),
    "adam": (0.5, None, "adam", {}),
    "not packed": (None, None, "adafactor", {"packed": False}),
    "bf16": (0.5, None, "adafactor", {"precision": "bf16"}),
}
FLOAT = [name for name in CASES if name != "bf16"]  # those whose sums are rounded to 24 bits
FAILING = {"peak_lr": PeakRate(adafactor=1e30, adam=1e38)}


def begin(study: Study, name: str, **changes):
    """Settings, data and start of a case: theta_0 of seed 1, pruned by its own magnitudes where a sparsity is given."""
    sparsity, gradual, optimizer, settings = CASES[name]
    changes |= {key: value for key, value in settings.items() if key != "packed"}
    batch = study.params.training.batch.model_copy(update={"packed": settings.get("packed", True)})
    weights = theta_0(study.model(), 1)
    mask = masks.magnitude_mask(prunable(weights), sparsity) if sparsity else None
    settings = study.params.training.model_copy(update={"batch": batch} | changes)
    return settings, study.data, Start(weights, mask, gradual, optimizer, 1, 0)


class Cut(Exception):
    """A kill."""


def cut_after(steps: int):
    done = 0

    def report(count, point):
        nonlocal done
        done += count
        if done > steps:
            raise Cut

    return report


# What each of the two processes does ------------------------------------------------------------


def work(folder: Path) -> None:
    """Train all cases with two processes, by one part and by two, and play through what can go wrong."""
    os.environ["SLT_RUNS"] = str(folder / "runs")
    study, found = Study(str(folder / "tiny.yaml")), {}
    with distributed.group():
        me, heard = distributed.rank(), []
        for name in CASES:
            for accumulate in (1, 2):
                case, run = begin(study, name), RunFolder(folder / f"{name}.{accumulate}")
                train(*case, run, (3, 5), lambda *reported: heard.append(reported), accumulate=accumulate)
        assert len(heard) == len(CASES) * 2 * (12 + 4)
        weights = replay(*begin(study, "gradual"), [5])[5]
        assert distributed.agree(lambda: weights_hash(weights))

        # cut at step 7 by one process, on to the end by two
        record = train(*begin(study, "gradual"), RunFolder(folder / "cut"), (3, 5))
        assert distributed.agree(lambda: record) and len(record["curve"]) == 4

        # one process has no number any more, or all have
        real, calls = training._Loss.forward, []

        def nan_in_one(*arguments):
            calls.append(None)
            return real(*arguments) * (math.nan if me == 1 and len(calls) == 8 else 1)

        training._Loss.forward = nan_in_one
        found["nan"] = train(*begin(study, "dense"), RunFolder(folder / "nan"))["reason"]
        training._Loss.forward = real
        found["diverged"] = train(*begin(study, "dense", **FAILING), RunFolder(folder / "diverged"))["reason"]

        def nan_on_dev(model, share, *_, **__):
            if me == 1:
                raise FloatingPointError("NaN")
            return [[] for _ in share]

        translate, training.decoding.translate = training.decoding.translate, nan_on_dev
        found["dev"] = train(*begin(study, "dense"), RunFolder(folder / "dev"))["reason"]
        training.decoding.translate = translate

        # a bit flips in one process
        made = training.new_model

        def caught(*arguments):
            nonlocal model
            model = made(*arguments)
            return model

        def flip(count, point):
            if me == 1:
                model.encoder_norm.bias.data[3] += 1e-3

        model, training.new_model = None, caught
        try:
            train(*begin(study, "dense"), RunFolder(folder / "flipped"), report=flip)
        except InputError as error:
            found["flipped"] = str(error)
        training.new_model = made

        found["told"] = distributed.broadcast(lambda: [me, distributed.size()])
        found["agree"] = [distributed.agree(lambda: 7), distributed.agree(lambda: me)]
        found["spread"] = distributed.spread(list(range(5)), lambda share: [10 * item + me for item in share])
        found["spread few"] = distributed.spread([4], lambda share: [(item, me) for item in share])
        with distributed.in_turn():
            found["in turn"] = (folder / "turn").exists()
            (folder / "turn").touch()
        found["mean"] = distributed.mean(torch.tensor(float(me))).item()
    (folder / f"found.{me}.json").write_text(json.dumps(found), encoding="utf-8")


# The same as one process ------------------------------------------------------------


def environment(**more) -> dict:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLT_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SLT_DEVICE": "cpu", **more}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder in which two processes have done `work`, and the study."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_RUNS", str(folder / "runs"))
        study = Study(str(folder / "tiny.yaml"))
        study.data  # noqa: B018 (the vocabulary is written)
        with pytest.raises(Cut):
            train(*begin(study, "gradual"), RunFolder(folder / "cut"), (3, 5), cut_after(7))
        command = [sys.executable, *LAUNCH, __file__, str(folder)]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr[-3000:]
        yield folder, study


@pytest.fixture(scope="module")
def one(together, tmp_path_factory):
    """A function that gives the folder and record of a case trained by this process alone."""
    folder, known = tmp_path_factory.mktemp("one"), {}

    def trained(name: str, accumulate: int = 1):
        if (name, accumulate) not in known:
            run = RunFolder(folder / f"{name}.{accumulate}")
            record = train(*begin(together[1], name), run, (3, 5), accumulate=accumulate)
            known[name, accumulate] = run, record
        return known[name, accumulate]

    return trained


def assert_same(found: RunFolder, expected: RunFolder, error: float = 2e-5) -> None:
    """Records and weights of two runs agree within float error, which grows with the steps; the masks are equal."""
    this, other = found.record(), expected.record()  # every file checked
    assert len(this["curve"]) == len(other["curve"]) > 0
    for a, b in zip(this.pop("curve"), other.pop("curve"), strict=True):
        assert a.pop("loss") == pytest.approx(b.pop("loss"), rel=1e-5)
        assert len(a.pop("weights")) == len(b.pop("weights")) == 16  # hashes of weights that are compared below
        assert a == b  # step, tokens, sparsity, and dev BLEU
    assert this.pop("files").keys() == (files := other.pop("files")).keys()
    assert this == other
    for name in files:
        left, right = found.load(name)[0], expected.load(name)[0]
        if name == "mask.safetensors":
            assert all(torch.equal(left[key], right[key]) for key in right)
        else:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=error)
    assert not list(found.path.glob(".*")) and not (found / RESUME).exists()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", FLOAT)
def test_two_processes_are_one(name, accumulate, together, one):
    assert_same(RunFolder(together[0] / f"{name}.{accumulate}"), one(name)[0])


@pytest.mark.parametrize("accumulate", [2, 4, 8])
@pytest.mark.parametrize("name", ["dense", "gradual stale"])
def test_parts_add_up_to_the_batch(name, accumulate, one):
    assert_same(one(name, accumulate)[0], one(name)[0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_are_one_in_bf16(accumulate, together, one):
    # A gradient is rounded to 8 bits in each process before they are added: what agrees is told by fp32's distance.
    this, other = RunFolder(together[0] / f"bf16.{accumulate}"), one("bf16")[0]
    for a, b in zip(this.record()["curve"], other.record()["curve"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2**-8) and a["tokens"] == b["tokens"]
    last = max(name for name in other.record()["files"] if name.startswith("theta"))
    two, alone, exact = (run.load(last)[0] for run in (this, other, one("sparse")[0]))
    assert 0 < distance(two, alone) < 2 * distance(alone, exact) < 0.02 * distance(alone, {})
    assert all(not two[name][weight == 0].any() for name, weight in prunable(exact).items())


def distance(a: dict, b: dict) -> float:
    """Euclidean, over all weights; nothing stands for zeros."""
    return sum(float((a[name] - b.get(name, 0)).square().sum()) for name in a) ** 0.5


def test_two_processes_go_on_where_one_was_cut(together, one):
    assert_same(RunFolder(together[0] / "cut"), one("gradual")[0])


def test_processes_agree_on_what_went_wrong(together):
    folder = together[0]
    found = [json.loads((folder / f"found.{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    for each in found:
        assert each["nan"] == "loss not finite at step 8"
        assert "not finite" in each["diverged"]
        assert each["dev"] == "logits not finite on dev: NaN"
        assert "flipped: the processes' weights differ at step 3; run the same command again" in each["flipped"]
        assert each["told"] == [0, 1]  # the first, which took itself for the only one meanwhile
        assert each["agree"] == [True, False]
        assert each["spread"] == [0, 11, 20, 31, 40] and each["spread few"] == [[4, 0]]
        assert each["mean"] == 0.5
    assert [each["in turn"] for each in found] == [False, True]
    assert [point["step"] for point in RunFolder(folder / "nan").record()["curve"]] == [3, 6]


def test_provenance_names_the_processes(together, one):
    two = json.loads((together[0] / "dense.1" / "provenance.json").read_text(encoding="utf-8"))
    alone = json.loads((one("dense")[0] / "provenance.json").read_text(encoding="utf-8"))
    assert (two["processes"], alone["processes"]) == (2, 1)
    assert two["device"] == f"2 x {alone['device']}"


# A lost worker ------------------------------------------------------------


def workers(launcher: int) -> dict[str, psutil.Process]:
    """Rank -> process."""
    found = {}
    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            found[process.environ()["RANK"]] = process
    return found


def test_a_lost_worker_ends_the_job_and_it_resumes(tmp_path, monkeypatch):
    steps, log = 60, tmp_path / "log"
    settings = changed(TINY, {"seeds": [1], "levels": [0.5], "training": {"steps": steps, "checkpoint": 0.1}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    folders = {"SLT_RUNS": str(tmp_path / "runs"), "SLT_FIGURES": str(tmp_path / "figures"), "SLT_PROGRESS": "lines"}
    options = ("run", str(tmp_path / "tiny.yaml"), "--techniques", "mp")
    command = [sys.executable, *LAUNCH, "-m", "slt_lib", *options]

    with log.open("wb") as sink:
        job = subprocess.Popen(command, env=environment(**folders), stdout=sink, stderr=sink, start_new_session=True)
        deadline = time.monotonic() + 300
        while ": step 12/" not in log.read_text(encoding="utf-8") and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        processes = workers(job.pid)
        assert sorted(processes) == ["0", "1"], log.read_text(encoding="utf-8")[-3000:]
        processes["1"].kill()
        assert job.wait(timeout=120) != 0
    gone, alive = psutil.wait_procs(list(processes.values()), timeout=30)
    assert not alive
    [run] = [path.parent for path in (tmp_path / "runs").glob(f"*/{RESUME}")]
    assert not (run / "run.json").exists()
    RunFolder(run).load(RESUME)  # whole
    before = log.read_text(encoding="utf-8")
    done = before.count(": step ")
    assert 2 <= done < 10  # by one of the two

    # by one process, on a copy
    shutil.copytree(tmp_path / "runs", tmp_path / "runs1")
    monkeypatch.setenv("SLT_PROGRESS", "lines")
    monkeypatch.setenv("SLT_RUNS", str(tmp_path / "runs1"))
    follow(tmp_path)
    # by none that was cut
    monkeypatch.setenv("SLT_RUNS", str(tmp_path / "unbroken"))
    follow(tmp_path)
    # by two
    ended = subprocess.run(command, env=environment(**folders), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count(": step ") == 10 - done  # it went on, and one process speaks
    assert ended.stdout.count("results.csv") == 1
    expected = RunFolder(tmp_path / "unbroken" / run.name)
    for name in ("runs", "runs1"):
        assert_same(RunFolder(tmp_path / name / run.name), expected, error=5e-4)
    rows = (tmp_path / "figures" / "tiny" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2


def follow(folder: Path) -> None:
    study = Study(str(folder / "tiny.yaml"))
    study.follow([study.chain(RECIPES["mp"], 1)])


# Bad input ------------------------------------------------------------


def test_rows_that_can_not_be_shared_out(session_study, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    line = "training.batch.rows: 8 rows are not a multiple of 3 processes x accumulate 1; "
    with pytest.raises(InputError, match=line):
        replay(*begin(session_study, "dense"), [1])


def test_parts_reach_no_identity(make_study):
    whole, parts = (make_study({"accumulate": n}) for n in (1, 4))
    assert whole.ticket(1).train_id == parts.ticket(1).train_id
    assert parts.params.accumulate == 4


def test_a_world_without_ranks(monkeypatch, study_file, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert main(["run", study_file()]) == 2
    assert capsys.readouterr().err == (
        "WORLD_SIZE is 4, but RANK is not set: start it with torchrun, or unset WORLD_SIZE\n"
    )


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for key, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLT_DEVICE", raising=False)
    with pytest.raises(InputError, match="4 processes share 2 GPUs here; torchrun --nproc-per-node 2 at most"):
        distributed.group().__enter__()


def test_another_process_says_what_went_wrong_with_it(monkeypatch, capsys):
    monkeypatch.setattr("slt_lib.__main__.AFTER_THE_FIRST", 0.0)
    monkeypatch.setenv("RANK", "2")
    assert main(["run", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("process 2: study 'nothing': there is no ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
