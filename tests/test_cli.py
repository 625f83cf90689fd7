"""The commands of the command line. Most invalid input is in tests/test_bad_input.py."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from slt_lib.__main__ import main
from slt_lib.report.summary import BEGIN, END
from slt_lib.train import loop as training


@pytest.fixture
def told(capsys):
    """A function that runs a command which must fail, and returns its one line."""

    def command(*arguments) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        caught = capsys.readouterr()
        assert caught.out == "" and caught.err.count("\n") == 1 and caught.err.endswith("\n"), caught.err
        return caught.err.rstrip("\n")

    return command


@pytest.fixture
def done(capsys):
    """A function that runs a command which must succeed, and returns its output."""

    def command(*arguments) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return command


def left(home) -> list[str]:
    """Files below `home` except study files, lock files and matplotlib's font list."""
    files = [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]
    return [str(path.relative_to(home)) for path in files if path.suffix not in (".yaml", ".lock")]


# Invalid input ------------------------------------------------------------


def test_as_a_program(home):
    """In a process: no traceback, status 2."""
    finished = subprocess.run(
        [sys.executable, "-m", "slt_lib", "run", "nosuch"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.startswith("study 'nosuch': there is no params/nosuch.yaml; known studies: ")
    assert finished.stderr.count("\n") == 1 and "quick" in finished.stderr
    assert not (home / "runs").exists() and not (home / "figures").exists()


def test_argparse_rejects_unknown_words(home, study_file, capsys):
    for arguments in (["run", study_file(), "--techniques", "magic"], ["fly"], [], ["run"], ["runs", "burn"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "invalid choice: 'magic'" in capsys.readouterr().err


# Commands ------------------------------------------------------------


def test_data(done, study_file):
    assert done("data", study_file()).splitlines()[0] == "en-de: grammar, train 200, dev 6, test 4 pairs"
    assert done("data", study_file()).splitlines()[1].startswith("en-de: vocabulary of 120 word pieces, sha256 ")


@pytest.fixture(scope="module")
def ran(tiny, tmp_path_factory):
    """A folder with a study of which the dense run and one SLT run are trained."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**tiny, "levels": [0.5], "keep": [0.05]}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_RUNS", str(folder / "runs"))
        patch.setenv("SLT_FIGURES", str(folder / "figures"))
        assert (
            main(["run", str(folder / "tiny.yaml"), "--seeds", "1", "--techniques", "dense", "slt", "--jobs", "1"]) == 0
        )
    return folder


@pytest.fixture
def trained(ran, home):
    """The path of that study in a copy of its folder."""
    shutil.copytree(ran, home, dirs_exist_ok=True)
    return home / "tiny.yaml"


def test_run_and_runs(trained, done, told, home, monkeypatch):
    rows = pd.read_csv(home / "figures" / "tiny" / "results.csv")
    assert rows.technique.tolist() == ["dense", "slt"] and rows.seed.tolist() == [1, 1]
    lines = done("runs", "list").splitlines()
    ids = [line.split()[0] for line in lines]
    assert sorted(ids) == sorted(rows.run) and all(" ok  seed 1  " in line and "12 steps" in line for line in lines)
    assert sorted(line.split()[4] for line in lines) == ["dense", "slt"]
    monkeypatch.setattr(training, "train", None)  # stored runs are not trained again
    monkeypatch.setattr(training, "replay", None)
    done("run", trained, "--seeds", 1, "--techniques", "dense", "slt")
    done("run", trained, "--stored", "--comparisons", "final", "--techniques", "dense", "slt", "mp")
    now = pd.read_csv(home / "figures" / "tiny" / "results.csv")
    assert {*now.run} == {run + end for run in rows.run for end in ("", "+final")}
    shown = json.loads(done("runs", "show", ids[0][:8]))
    assert shown["ticket"]["seed"] == 1 and shown["record"]["steps"] == 12
    for wrong in ("zzz", "", "../runs"):
        assert f"no run id begins with {wrong!r}" in told("runs", "show", wrong)
        assert f"no run id begins with {wrong!r}" in told("runs", "remove", wrong)
    assert done("runs", "remove", ids[0]) == f"removed {home / 'runs' / ids[0]}\n"
    assert [line.split()[0] for line in done("runs", "list").splitlines()] == [ids[1]]
    assert not (home / "runs" / ids[0]).exists()
    (home / "runs" / ids[1] / "theta_0000012.safetensors").write_bytes(b"")
    assert f"{ids[1]}  damaged: " in done("runs", "list")


def test_runs_of_an_empty_store(done, told, home):
    assert done("runs", "list") == "" and left(home) == []
    assert "no run id begins with" in told("runs", "show", "abc")


def given(monkeypatch, content: bytes, errors="strict"):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors=errors))


@pytest.mark.parametrize("options", [[], ["--technique", "slt", "--sparsity", 0.5]])
def test_translate_prints_one_line_per_line(options, trained, done, monkeypatch):
    long = " ".join(["dog"] * 300)
    for content, count in (
        (b"", 0),
        (b"the man sees a dog\n\n  \n" + long.encode() + b"\nlast without an end", 5),
        ("Grüße \u2028 ☃ <pad> \r\nnext\n".encode(), 2),
    ):
        given(monkeypatch, content)
        printed = done("translate", trained, *options)
        assert printed.count("\n") == count, content


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # Python's stdin in a UTF-8 and in the C locale
def test_translate_text_that_is_not_utf_8(errors, trained, told, monkeypatch):
    given(monkeypatch, b"a dog\nx\xff\n", errors)
    assert "UTF-8" in told("translate", trained)


def test_options_that_would_have_no_effect(trained, told):
    assert "leave out the study and its options" in told("translate", trained, "--model", "model")
    assert "leave out the study and its options" in told("translate", "--model", "model", "--sparsity", "0.5")
    assert "--into goes without --html" in told("report", trained, "--html", "--into", "README.md")
    assert "--allow-dirty with --into" in told("report", trained, "--allow-dirty")


def test_translate_with_a_level_that_the_technique_lacks(trained, told, monkeypatch):
    # MP-SLT starts above 60%, from a run that is not in this store; translate trains nothing.
    given(monkeypatch, b"a dog\n")
    assert "not trained yet" in told("translate", trained, "--technique", "mp-slt", "--sparsity", 0.5)


def test_translate_with_a_failed_run(study_file, told, done, monkeypatch):
    given(monkeypatch, b"a dog\n")
    study = study_file({"training": {"peak_lr": {"adafactor": 1e30}}})
    done("run", study, "--techniques", "dense")
    assert "not finite" in told("translate", study)


def test_translate_with_an_invalid_seed(trained, told, monkeypatch):
    given(monkeypatch, b"")
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(training, "replay", None)
    assert told("translate", trained, "--seed", -1) == "seeds: -1 is not a whole number from 0"


def test_export_and_translate_elsewhere(trained, done, told, home, monkeypatch):
    chosen = ["--technique", "slt", "--sparsity", 0.5]
    assert done("export", trained, *chosen, "-o", home / "model").startswith(f"{home / 'model'}: 0.0")
    assert "theta_0" not in done("export", trained, *chosen, "--ticket", "-o", home / "ticket")
    for taken in ("model", "model/config.json"):  # a folder that is not empty, and a file
        assert "is not an empty folder; name another one" in told("export", trained, *chosen, "-o", home / taken)
    given(monkeypatch, b"the man sees a dog\n")
    here = done("translate", trained, *chosen)
    shutil.rmtree(home / "runs")
    trained.unlink()
    given(monkeypatch, b"the man sees a dog\n")
    assert done("translate", "--model", home / "model") == here
    assert "a ticket is not trained" in told("translate", "--model", home / "ticket")
    assert "name a folder that" in told("translate", "--model", home / "nowhere")
    assert told("translate") == "name a study, or a folder with --model"


def test_export_needs_only_the_runs_that_the_run_depends_on(study_file, done, told, home):
    study = study_file({"pairs": {"en-de": ["mp", "slt"]}, "seeds": [1]})
    done("run", study, "--techniques", "mp", "--levels", 0.8, "--no-report")
    done("export", study, "--technique", "mp", "--sparsity", 0.8, "-o", home / "mp")
    done("run", study, "--techniques", "slt", "--levels", 0.8, "--no-report")  # from the dense run to 80% at once
    missing = "slt at sparsity 0.5 is not trained yet"
    assert missing in told("export", study, "--technique", "slt", "--sparsity", 0.8, "-o", home / "slt")
    assert not (home / "slt").exists()


def test_report_of_a_study_that_was_not_run(told):
    assert told("report", "nosuch").endswith("nosuch: no such figures folder; run the study first, or check its name")


def test_report_by_path(trained, done, home):
    before = (home / "figures" / "tiny" / "results.csv").read_bytes()
    assert "results.csv" in done("report", trained)
    assert (home / "figures" / "tiny" / "results.csv").read_bytes() == before


def test_report_by_name(trained, done, home):
    before = (home / "figures" / "tiny" / "results.csv").read_bytes()
    assert "results.csv" in done("report", "tiny")
    assert (home / "figures" / "tiny" / "results.csv").read_bytes() == before


@pytest.mark.parametrize("commit", ["0123456789ab", "0123456789ab+"])
def test_report_into_a_readme(commit, trained, done, told, home):
    folder, path = home / "figures" / "tiny", home / "README.md"
    shutil.rmtree(folder / "parts")
    known = pd.read_csv(folder / "provenance.csv").assign(commit=commit)
    known.to_csv(folder / "provenance.csv", index=False)
    path.write_text(f"{BEGIN.format('tiny', 'tiny', 'README.md')}\n{END}\n")
    before = path.read_bytes()
    if commit.endswith("+"):
        assert "provenance.csv: 2 of 2 trainings ran on uncommitted code" in told("report", trained, "--into", path)
        assert path.read_bytes() == before
        done("report", trained, "--into", path, "--allow-dirty")
    else:
        done("report", trained, "--into", path)
    assert ("2 of 2 trainings ran on uncommitted code" in path.read_text()) == commit.endswith("+")
    assert path.read_bytes() != before
