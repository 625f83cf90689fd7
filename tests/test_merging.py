"""Merging parts: rows of one version, committed rows kept, and everything that is left out named."""

import gzip
import json
import shutil

import pandas as pd
import pytest
from test_report import make_folder, read_part, write_part

from slt_lib import report
from slt_lib.base.errors import InputError
from slt_lib.report.data import KINDS, RESULT_COLUMNS
from slt_lib.study import results
from slt_lib.techniques import slt

PROVENANCE = KINDS["provenance"][1]


def one_row(seed=1, bleu="30.0", run="", technique="slt", sparsity="0.5", **known):
    """A part of one row; `known` goes into its provenance."""
    run = run or f"{technique}-{seed}"
    row = {"study": "made", "pair": "en-de", "technique": technique, "sparsity": sparsity, "seed": str(seed)}
    row |= {"test_set": "test_a", "status": "ok", "bleu": bleu, "run": run}
    return {
        "results": [[row.get(column, "") for column in RESULT_COLUMNS]],
        "provenance": [[({"run": run} | known).get(column, "") for column in PROVENANCE]],
    }


@pytest.fixture
def folder(tmp_path):
    """A made study of which nothing was run."""
    folder = make_folder(tmp_path / "made")
    shutil.rmtree(folder / "parts")
    return folder


def seeds(folder):
    report.merge(folder)
    rows = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    return dict(zip(rows.seed, rows.bleu, strict=True))


def set_versions(folder, **versions):
    about = json.loads((folder / "study.json").read_text())
    about["levels"] = versions.pop("levels", about["levels"])
    about["versions"] |= versions
    (folder / "study.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"recipe": 1}, "recipe version 1 (study.json has 2)"),
        ({"score": 3}, "score version 3 (study.json has 1)"),
        ({"settings": "f" * 16}, "settings ffffffffffffffff (study.json has 0123456789abcdef)"),
        ({"levels": [0.5]}, "levels 0.5 (study.json has 0.5, 0.8, 0.9, 0.98)"),
    ],
)
def test_two_seeds_of_different_versions_never_stand_together(other, reason, folder, capsys):
    write_part(folder, "en-de.slt.default.0.5.1", one_row(1))
    write_part(folder, "en-de.slt.default.0.5.2", one_row(2), **other)
    before = {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}
    assert seeds(folder) == {"1": "30.0"}
    assert capsys.readouterr().err == (
        f"{folder / 'parts'}: left out 1 part of {reason}: en-de.slt.default.0.5.2; "
        "run the study again to replace them\n"
    )
    assert {path.name: path.read_bytes() for path in (folder / "parts").iterdir()} == before


def test_at_most_ten_parts_are_named(folder, capsys):
    for seed in range(13):
        write_part(folder, f"part{seed:02}", one_row(seed), recipe=1)
    write_part(folder, "new", one_row(1))
    assert seeds(folder) == {"1": "30.0"}
    [first] = capsys.readouterr().err.splitlines()
    assert "left out 13 parts of recipe version 1" in first and "part09 and 3 more;" in first and "part10" not in first


def test_a_new_machine_adds_to_the_committed_rows(folder, capsys):
    for seed in (1, 2):
        write_part(folder, f"seed{seed}", one_row(seed, weights="aa"))
    report.merge(folder)
    shutil.rmtree(folder / "parts")  # git ignores it
    write_part(folder, "seed3", one_row(3))
    assert seeds(folder) == {"1": "30.0", "2": "30.0", "3": "30.0"}
    assert set(pd.read_csv(folder / "provenance.csv").run) == {"slt-1", "slt-2", "slt-3"}
    whole = {name: (folder / name).read_bytes() for name, _, _ in KINDS.values()}
    shutil.rmtree(folder / "parts")
    write_part(folder, "seed2", one_row(2, weights="aa"))
    report.merge(folder)
    assert {name: (folder / name).read_bytes() for name, _, _ in KINDS.values()} == whole
    assert capsys.readouterr().err == ""


def test_a_part_wins_over_the_committed_row(folder):
    write_part(folder, "seed1", one_row(1, run="old") | {"sentences": [["old", "test_a", "1", *["0"] * 14]]})
    report.merge(folder)
    write_part(folder, "seed1", one_row(1, bleu="31.0", run="new"))
    assert seeds(folder) == {"1": "31.0"}
    assert pd.read_csv(folder / "provenance.csv").run.tolist() == ["new"]
    assert len(pd.read_csv(folder / "sentences.csv.gz")) == 0  # nothing of the run that no row names


def test_committed_rows_of_other_versions_are_left_out(folder, capsys):
    write_part(folder, "seed1", one_row(1))
    report.merge(folder)
    committed = (folder / "results.csv").read_bytes()
    set_versions(folder, recipe=3)
    with pytest.raises(
        InputError, match=r"results.csv: its rows are of recipe version 2 \(study.json has 3\); run the"
    ):
        report.merge(folder)
    assert (folder / "results.csv").read_bytes() == committed
    capsys.readouterr()
    write_part(folder, "seed2", one_row(2), recipe=3)
    assert seeds(folder) == {"2": "30.0"}
    assert "left out its rows of recipe version 2 (study.json has 3); run the study" in capsys.readouterr().err
    shutil.rmtree(folder / "parts")
    set_versions(folder, recipe=3)
    assert seeds(folder) == {"2": "30.0"}  # these are of version 3


def test_a_folder_without_versions_stays_as_it_is(folder):
    write_part(folder, "seed1", one_row(1))
    report.merge(folder)
    about = json.loads((folder / "study.json").read_text())
    del about["versions"], about["merged"]
    (folder / "study.json").write_text(json.dumps(about))
    write_part(folder, "seed2", one_row(2))
    assert seeds(folder) == {"1": "30.0"}
    assert report.load(folder).name == "made"


def test_children_of_a_run_that_came_out_different_are_left_out(folder, capsys):
    write_part(folder, "dense", one_row(1, run="d", technique="dense", sparsity="0", weights="aa"))
    write_part(folder, "slt50", one_row(1, run="s50", weights="bb", parents="d:aa"))
    write_part(folder, "slt80", one_row(1, run="s80", sparsity="0.8", weights="cc", parents="d:aa s50:bb"))
    write_part(folder, "clt80", one_row(1, run="c80", technique="clt", sparsity="0.8", parents="s50:bb gone:ff"))
    write_part(folder, "mp50", one_row(1, run="m50", technique="mp", weights="dd", parents=""))
    report.merge(folder)
    assert len(pd.read_csv(folder / "results.csv")) == 5 and capsys.readouterr().err == ""
    shutil.rmtree(folder / "parts")
    write_part(folder, "dense", one_row(1, run="d", technique="dense", sparsity="0", weights="a2"))
    report.merge(folder)
    assert set(pd.read_csv(folder / "results.csv").run) == {"d", "m50"}
    assert capsys.readouterr().err == (
        f"{folder}: left out 3 rows of which a parent was trained again and came out different: "
        "en-de clt 0.8 seed 1 (run c80), en-de slt 0.5 seed 1 (run s50), en-de slt 0.8 seed 1 (run s80); "
        "remove them (`python -m slt_lib runs remove RUN`) and run the study again\n"
    )


def test_another_row_of_a_run_that_came_out_different_is_left_out(folder, capsys):
    write_part(folder, "slt", one_row(1, run="s", weights="aa"))
    write_part(folder, "slt-mp", one_row(1, run="s", technique="slt-mp", weights="aa"))
    report.merge(folder)
    shutil.rmtree(folder / "parts")
    write_part(folder, "slt", one_row(1, bleu="29.0", run="s", weights="bb"))
    assert seeds(folder) == {"1": "29.0"}
    assert "left out 1 row whose run was trained again and came out different: en-de slt-mp" in capsys.readouterr().err


def test_rows_of_a_pair_that_the_study_has_no_more_are_left_out(folder, capsys):
    write_part(folder, "seed1", one_row(1))
    other = one_row(2)
    other["results"][0][1] = "en-fr"
    write_part(folder, "seed2", other)
    assert seeds(folder) == {"1": "30.0"}
    assert "1 row of a pair that study.json does not have: en-fr slt 0.5 seed 2" in capsys.readouterr().err


DAMAGED = {
    "no gzip": (b"{}", "Not a gzipped file"),
    "cut": (gzip.compress(b'{"label": {}}')[:-9], "Compressed file ended"),
    "no JSON": (gzip.compress(b"{"), "Expecting property name"),
    "no mapping": (gzip.compress(b"[]"), "list indices must be integers"),
    "no label": (gzip.compress(b"{}"), "'label' is missing"),
    "no rows": (gzip.compress(b'{"label": {}}'), "'results' is missing"),
    "a short row": (gzip.compress(b'{"label": {}, "results": [["a"]]}'), "results has a row that is not 23 texts"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_part_is_named(case, folder):
    content, reason = DAMAGED[case]
    (folder / "parts").mkdir()
    (folder / "parts" / "seed1.json.gz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        report.merge(folder)
    said = str(caught.value)
    assert said.startswith(f"{folder / 'parts' / 'seed1.json.gz'}: cannot be read (") and reason in said
    assert said.endswith("; delete it and run the study again") and "\n" not in said


# From runs to parts ------------------------------------------------------------


def test_a_part_names_what_it_comes_from(make_study, home, monkeypatch):
    study = make_study(seeds=[1])
    [chain] = study.follow([study.chain(slt, 1, [0.5], rewind=0.25)])
    dense, sparse = chain.runs
    dense.record["curve"][-1]["weights"], sparse.record["parents"] = "ab" * 8, {dense.id: "ab" * 8}
    assert [row["run"] for row in results.record_run(study, chain, dense)] == [dense.id]
    folder = home / "figures" / "tiny"
    about = json.loads((folder / "study.json").read_text())
    part = read_part(folder / "parts" / "en-de.dense.default.0.1.json.gz")
    assert part["label"] == about["versions"] | {"levels": about["levels"], "seeds": [1]}
    assert set(about["versions"]) == {"recipe", "score", "settings"} and about["seeds"] == [1, 2]
    report.merge(folder)  # as soon as a run is there
    rows = results.record(study, [chain])
    report.merge(folder)
    known = pd.read_csv(folder / "provenance.csv", dtype=str).set_index("run")
    assert known.weights[dense.id] == "ab" * 8 and known.parents[sparse.id] == f"{dense.id}:{'ab' * 8}"
    assert set(pd.read_csv(folder / "results.csv").run) == set(rows.run) == {dense.id, sparse.id}


def test_rows_of_other_settings_go_and_no_part_is_deleted(make_study, home, monkeypatch, capsys):
    folder = home / "figures" / "tiny"
    for changes, expected in (({}, {1, 2}), ({"training": {"steps": 8}}, {1})):
        study = make_study(changes)
        chains = study.follow([study.chain(slt, seed, [0.5], rewind=0.25) for seed in sorted(expected)])
        results.record(study, chains)
        report.merge(folder)
        rows = pd.read_csv(folder / "results.csv")
        assert set(rows.seed) == expected and set(rows.steps) == {study.params.training.steps}
    said = capsys.readouterr().err
    assert "parts: left out 2 parts of settings" in said and "en-de.dense.default.0.2" in said
    assert "results.csv: left out its rows of settings" in said
    assert len(list((folder / "parts").glob("*.json.gz"))) == 4


def test_a_notebooks_table_tells_a_failure_from_a_score_of_0():
    numbers = {"bleu": [0.0, None, 2.0], "ter": [90.0, None, 80.0], "ter_13a": [90.0, None, 80.0]}
    rows = pd.DataFrame(numbers | {"memory_mib": [1.0, None, 1.0], "kept": 5, "seed": 1, "test_set": "test"})
    rows = rows.assign(technique=["lt", "mp", "slt"], variant="", sparsity="0.5", status=["ok", "failed", "ok"])
    shown = (
        results.table(rows.assign(reason=["", "loss not finite at step 3", ""])).reset_index().set_index("technique")
    )
    assert shown.bleu.to_dict() == {"lt": 0.0, "mp": "failed", "slt": 2.0}
    assert shown.seeds.to_dict() == {"lt": 1, "mp": 0, "slt": 1}
    assert shown.failed.to_dict() == {"lt": "", "mp": "loss not finite at step 3", "slt": ""}
    whole = results.table(rows[rows.status == "ok"].assign(reason=""))
    assert "failed" not in whole and whole.bleu.tolist() == [0.0, 2.0]
