"""The benchmark: CSV and table agree, and it measures the real trainer. JoeyNMT is not installed here."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import inference, joey, measures, plain, table, worker
from benchmarks.setting import Setting
from slt_lib.base.store import RunFolder
from slt_lib.train import loop as training
from slt_lib.transformer import Shape


@pytest.fixture
def setting(study_file, home) -> Setting:
    """The tiny study, measured for a moment per system."""
    return Setting(study_file({"training": {"steps": 8}}), steps=4, rounds=2, seconds=0, folder=home / "bench")


@pytest.fixture
def csv(home, monkeypatch) -> Path:
    """The benchmark with its CSV in the test's folder, workers in this process, and without JoeyNMT."""
    monkeypatch.setenv("BENCH_JOEYNMT", "0")
    monkeypatch.setenv("SLT_BUILD", str(home))
    monkeypatch.setattr(table, "PATH", home / "results.csv")

    def here(what, precision, threads, seconds, *more, at_once=1):
        found = worker.WORK[what](Setting.read(), precision, seconds / 10, *more)
        return [json.loads(json.dumps(found))] * at_once

    monkeypatch.setattr(measures, "worker", here)
    return home / "results.csv"


@pytest.mark.parametrize("system", inference.SYSTEMS)
def test_a_system_answers_each_line_with_its_speed(system, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("3 2\n1 1\n"))
    inference.speeds(Shape(vocabulary=20, layers=1, hidden=16, filter=16, heads=2), system, 0)
    fast, slow = map(float, capsys.readouterr().out.split())
    assert fast > 0 and slow > 0


def test_medians_and_ratios_by_hand():
    first, second = table.rows("training", "here", "tokens/s", {"ours": [300.0, 100.0, 200.0], "plain": [50.0, 150.0]})
    assert (first.value, first.ratio, first.low, first.high, first.rounds) == (200, 1, 100, 300, 3)
    assert (second.value, second.ratio, second.low, second.high, second.rounds) == (100, 0.5, 50, 150, 2)


def test_a_repeated_measure_replaces_only_its_rows(tmp_path):
    path = tmp_path / "results.csv"
    old = table.rows("training", "a, with a comma", "s", {"ours": [1.0], "plain": [2.0]})
    other = table.rows("masks", "b", "ms", {"dense": [3.5]}, base="dense")
    table.write(old, path)
    table.write(other, path)
    assert table.read(path) == [*old, *other]
    new = table.rows("training", "c", "s", {"ours": [4.0]})
    table.write(new, path)
    assert table.read(path) == [*other, *new]
    assert path.read_text().splitlines()[0] == "measure,setting,system,value,unit,ratio,low,high,rounds,machine,commit"


def test_the_table_shows_every_row_once():
    shown = table.rows("training", "a", "tokens/s", {"ours": [1234.0], "plain": [617.0]})
    shown += table.rows("decoding", "b", "sentences/s", {"ours": [12.5]})
    lines = table.table(shown).splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["training: a", "", "decoding: b"]
    assert "ours" in lines[1] and "1234" in lines[1] and "ratio   1.000" in lines[1]
    assert "617" in lines[2] and "ratio   0.500" in lines[2]


def test_tokens_match_the_trainers_count(setting, tmp_path):
    study = setting.study
    start = study.ticket(1).start()
    record = training.train(study.params.training, study.data, start, RunFolder(tmp_path / "run"))
    counted = worker.tokens(study.params.training, study.data, start, study.params.training.steps)
    assert sum(counted) == record["target_tokens"]


def test_the_clock_counts_every_step(setting):
    study = setting.study
    clock = worker.watched(study.params.training, study.data, study.ticket(1).start(), float("inf"))
    assert len(clock.times) == study.params.training.steps
    assert sum(clock.steps) == pytest.approx(clock.taken) and min(clock.steps) > 0


def test_plain_batches_have_every_sentence_once_and_at_most_our_slots(setting):
    data, slots, length = setting.study.data, 8 * 48, 48
    fitting = int(((data.source.lengths <= length) & (data.target.lengths <= length)).sum())
    stream, seen = plain.batches(data.source, data.target, slots, length, seed=1), 0
    while seen < fitting:
        source, target = next(stream)
        assert max(source.numel(), target.numel()) <= slots
        seen += len(source)
    assert seen == fitting


def test_the_plain_loop_learns(setting):
    data, losses = setting.study.data, []
    own = setting.study.params.training
    settings = own.model_copy(update={"steps": 50, "peak_lr": own.peak_lr.model_copy(update={"adam": 0.02})})
    real = torch.nn.functional.cross_entropy

    def watched(*arguments, **options):
        loss = real(*arguments, **options)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", watched)
        plain.train(settings, len(data.vocabulary), data.source, data.target, lambda count: None)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2


def test_joeynmt_reads_and_writes_our_word_pieces(setting):
    study = setting.study
    lines, names = list(study.corpus.dev.target), joey.pieces(study.vocabulary)
    assert len(names) == len(study.vocabulary) - 3 and not any(" " in name for name in names)
    written = joey.text(study.vocabulary, lines)
    assert [len(line.split(" ")) for line in written] == [
        len(ids) - 1 for ids in study.vocabulary.encode(lines).lists()
    ]
    assert joey.joined(study.vocabulary, written) == lines


@pytest.mark.parametrize("measure", ["training", "masks", "decoding", "scoring"])
def test_a_quick_measure_of_ours_and_the_plain_loop(measure, setting, csv, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_STUDY", setting.name)
    for name, value in {"STEPS": 4, "ROUNDS": 1, "SECONDS": 1}.items():
        monkeypatch.setenv(f"BENCH_{name}", str(value))
    monkeypatch.setattr(measures, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(measures, "cores", lambda: 1)
    assert command.main([measure]) == 0
    rows = table.read(csv)
    assert {row.measure for row in rows} == {measure} and all(np.isfinite(row.value) for row in rows)
    assert capsys.readouterr().out.strip() == table.table(rows)


def test_the_page_has_the_table_of_the_csv(tmp_path):
    text = table.PAGE.read_text(encoding="utf-8")
    (tmp_path / "speed.md").write_text(text, encoding="utf-8")
    table.into(tmp_path / "speed.md")
    assert (tmp_path / "speed.md").read_text(encoding="utf-8") == text
    [row] = [row for row in table.read() if (row.system, row.unit) == ("ours", "target tokens/s")][:1]
    assert f"| {row.value:.0f} |" in text


def test_errors_name_an_unknown_measure_and_an_invalid_number(csv, monkeypatch, capsys):
    assert command.main(["speed"]) == 2
    assert capsys.readouterr().err.startswith("ONLY=speed: no such measure; there are training,")
    monkeypatch.setenv("BENCH_STEPS", "many")
    assert command.main(["masks"]) == 2
    assert capsys.readouterr().err == "BENCH_STEPS=many: a whole number above 0 is needed\n"
