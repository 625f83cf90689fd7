"""Size on disk and speed of stored runs, as notebook 12 measures them."""

import pandas as pd
import pytest

from slt_lib.report import footprint
from slt_lib.study.footprint import record_footprint
from slt_lib.study.results import figures
from slt_lib.techniques import RECIPES


@pytest.fixture
def measured(session_study, monkeypatch, tmp_path):
    monkeypatch.setenv("SLT_FIGURES", str(tmp_path))
    chains = session_study.follow([session_study.chain(RECIPES[name], 1) for name in ("dense", "slt")])
    return chains, record_footprint(session_study, chains, sentences=2, seconds=0)


def test_a_row_per_run_with_smaller_files_at_higher_sparsity(measured, session_study):
    chains, frame = measured
    assert set(frame.run) == {run.id for chain in chains for run in chain.runs} and frame.run.is_unique
    assert (frame.sort_values("sparsity")["bytes"].diff().dropna() < 0).all()
    assert frame.bytes_fp32.nunique() == frame.bytes_bf16.nunique() == 1
    assert (frame[[*footprint.WAYS]] > 0).all(axis=None)
    stored = footprint.read(figures(session_study.name), "en-de")
    assert sorted(stored.run) == sorted(frame.run)
    assert footprint.read(figures(session_study.name), "en-fr").empty


def test_measured_again_rows_are_replaced(measured, session_study):
    chains, frame = measured
    record_footprint(session_study, chains[1:], sentences=2, seconds=0)
    stored = footprint.read(figures(session_study.name), "en-de")
    assert sorted(stored.run) == sorted(frame.run)


def test_levels_choose_what_is_measured_beside_the_dense_model(session_study, monkeypatch, tmp_path):
    monkeypatch.setenv("SLT_FIGURES", str(tmp_path))
    chains = session_study.follow([session_study.chain(RECIPES["slt"], 1)])
    frame = record_footprint(session_study, chains, sentences=2, seconds=0, levels=[0.8])
    assert frame.sparsity.tolist() == [0, 0.8]


def test_speeds_are_relative_to_the_largest_dense_model():
    about = {"pair": "en-de", "bleu": 30.0, "threads": 2} | dict.fromkeys(footprint.SIZES, 2.0**20)
    models = [
        ("dense", 0.0, "small", 500, 20.0),
        ("dense", 0.0, "large", 1000, 10.0),
        ("slt", 0.9, "large", 1000, 15.0),
    ]
    rows = [
        about
        | {"technique": name, "sparsity": sparsity, "study": study, "weights": weights, "seed": 1, "run": name + study}
        | dict.fromkeys(footprint.WAYS, speed)
        for name, sparsity, study, weights, speed in models
    ]
    shown = footprint.table(pd.DataFrame(rows))
    assert shown["beam4 batch"].sort_values().tolist() == [1.0, 1.5, 2.0]
    assert shown.loc["SLT 90%", "as exported [MiB]"] == 1.0
