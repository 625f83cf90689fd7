"""Trainings side by side end in the same bytes as one after another, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from slt_lib.base.errors import InputError
from slt_lib.study import workers
from slt_lib.study.chains import by_urgency
from slt_lib.study.scores import scored
from slt_lib.techniques import clt, mp, slt


def weights(study):
    """Every file of weights and masks in the store, by run."""
    return {
        (path.parent.name, path.name): path.read_bytes()
        for path in study.store.path.glob("*/*.safetensors")
        if not path.name.startswith("resume")
    }


def test_side_by_side_gives_the_same_bytes(make_study, tmp_path, monkeypatch):
    recipes = (mp, slt)
    found = []
    for jobs in (1, 2):
        monkeypatch.setenv("SLT_RUNS", str(tmp_path / f"runs{jobs}"))
        study = make_study({"levels": [0.5, 0.8]})
        chains = study.follow([study.chain(recipe, seed) for seed in (1, 2) for recipe in recipes], jobs=jobs)
        found.append(([[run.id for run in chain.runs] for chain in chains], weights(study)))
    assert found[0] == found[1]
    assert len(found[0][1]) > 12


def test_runs_of_a_list_are_reported_before_all_of_it_is_trained(make_study):
    """MP's levels wait for each other nowhere: a row is written as soon as its own run is scored."""
    study, heard = make_study({"levels": [0.5, 0.6, 0.8]}), []
    chain = study.chain(mp, 1)
    study.follow([chain], jobs=2, done=lambda chain, run: heard.append((run.sparsity, len(chain.runs))))
    assert sorted(level for level, _ in heard) == [0.5, 0.6, 0.8] and heard[0][1] < 3
    assert [run.sparsity for run in chain.runs] == [0.5, 0.6, 0.8]


def test_what_is_in_the_store_starts_no_process(make_study, monkeypatch):
    study = make_study({"levels": [0.5]})
    [chain] = study.follow([study.chain(slt, 1)])
    for run in chain.runs:
        assert not scored(run)
        workers._train(study, run.ticket)  # what a process does with a ticket: train unless stored, and score
        assert scored(run)
    monkeypatch.setattr(workers, "_train", None)
    monkeypatch.setattr(workers.Workers, "first_done", None)
    [again] = study.follow([study.chain(slt, 1)], jobs=2)
    assert [run.id for run in again.runs] == [run.id for run in chain.runs]


def test_an_error_in_a_training_reaches_the_caller(make_study):
    broken = make_study({"training": {"batch": {"rows": 8, "length": 8}}})  # no pair fits
    with pytest.raises(InputError, match="length"):
        broken.follow([broken.chain(slt, 1, [0.5])], jobs=2)


def test_what_is_ended_before_its_first_checkpoint_leaves_nothing(make_study):
    study = make_study({"training": {"steps": 100_000, "checkpoint": 1.0}})
    ticket = study.ticket(1)
    folder = study.store.folder(ticket.train_id)
    with pytest.raises(InputError, match="of another"), workers.Workers(study, 1) as pool:
        pool.pool.submit(workers._train, study, ticket)
        while not (folder / "ticket.json").exists():
            time.sleep(0.05)
        raise InputError("of another")
    assert not folder.path.exists()


def test_what_many_chains_wait_for_comes_first(make_study):
    study = make_study()
    chains = [study.chain(mp, 1), study.chain(slt, 2), study.chain(slt, 1), study.chain(clt, 1)]
    for chain in chains:
        chain.advance()
    asked = [chain.asked for chain in chains]
    order = by_urgency(chains, {})
    assert [ticket.train_id for ticket in order] == [
        ticket.train_id for ticket in (asked[2], asked[1], *asked[0])
    ]  # seed 1 dense for two chains, seed 2 dense for one, then MP's levels for nobody


def children(pid):
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split()[2:]
    return [int(child) for child, parent in zip(listed[::2], listed[1::2], strict=True) if int(parent) == pid]


def test_no_training_outlives_its_parent(study_file, home):
    study = study_file({"training": {"steps": 100_000, "checkpoint": 0.0005, "gradual": {"every": 0.02, "until": 0.8}}})
    with open(home / "log", "wb") as log:
        command = [sys.executable, "-m", "slt_lib", "run", study, "--seeds", "1", "2", "--techniques", "dense"]
        parent = subprocess.Popen([*command, "--jobs", "2"], stderr=log, stdout=log)
    try:
        for _ in range(600):
            if (home / "log").read_text().count(": step ") >= 2:
                break
            time.sleep(0.1)
        family = children(parent.pid)
        assert len(family) >= 2, (home / "log").read_text()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(100):
        alive = [pid for pid in family if os.path.exists(f"/proc/{pid}") or _answers(pid)]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"{alive} still run")


def test_a_killed_process_is_named_and_the_same_command_goes_on(study_file, home):
    study = study_file({"training": {"steps": 100_000, "checkpoint": 0.0005, "gradual": {"every": 0.02, "until": 0.8}}})
    command = [sys.executable, "-m", "slt_lib", "run", study, "--seeds", "1", "2", "--techniques", "dense"]
    with open(home / "log", "wb") as log:
        parent = subprocess.Popen([*command, "--jobs", "2"], stderr=log, stdout=log)
    for _ in range(600):
        if all(f"seed {seed} dense" in (home / "log").read_text() for seed in (1, 2)):
            break
        time.sleep(0.1)
    locks = {path.stem: path.read_text() for path in (home / "runs" / "locks").glob("*.lock")}
    [(name, pid)] = [(name, int(text.split()[0])) for name, text in locks.items() if text][:1]
    os.kill(pid, signal.SIGKILL)  # as the kernel does where memory runs out
    assert parent.wait(60) == 2
    lines = (home / "log").read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    [said] = [line for line in lines if "was killed" in line]
    assert name[:8] in said and said.count("seed") == 1 and "the same command goes on from its last checkpoint" in said
    folders = [path for path in (home / "runs").iterdir() if (path / "resume.safetensors").exists()]
    assert len(folders) == 2  # both trainings can be resumed


def test_a_kill_of_the_last_process_that_started_is_noticed(make_study, monkeypatch):
    """`ProcessPoolExecutor.submit` wakes the thread that watches the processes before it starts one more."""
    start = ProcessPoolExecutor._adjust_process_count

    def late(pool):
        time.sleep(1)
        start(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_adjust_process_count", late)
    study = make_study({"training": {"steps": 100_000, "checkpoint": 0.0005}})
    tickets = [study.ticket(seed) for seed in (1, 2)]

    def kill():
        while len(processes := list(parallel.pool._processes)) < 2:
            time.sleep(0.1)
        os.kill(processes[-1], signal.SIGKILL)

    with pytest.raises(InputError, match="was killed"), workers.Workers(study, 2) as parallel:
        threading.Thread(target=kill).start()
        parallel.first_done(tickets, {}, ())


def _answers(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
