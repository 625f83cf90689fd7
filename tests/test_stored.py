"""The store of the converged study stays readable: a small one, written by the code of the tag `study-1`.

`study-1.tar.gz` holds the tiny study: one seed's runs of SLT, MP and CLT with random signs, scored and recorded, and
one training that was interrupted at step 8.
"""

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from slt_lib.base.store import Store
from slt_lib.study import Study, results, scores
from slt_lib.techniques import clt_control, mp, slt
from slt_lib.train import loop

RUNS = {
    "slt": ["50faaec5a92a7c17fb7f85c6cdb822a3", "217fa4c498731a32de2433ac1ac107f9"],
    "mp": ["3fe7a4e09cd1b34e824d3c16dee98a2a"],
    "clt": ["50faaec5a92a7c17fb7f85c6cdb822a3", "ab748fdc65b5d4f3b7d6a3ee846c4418"],
}


@pytest.fixture
def stored(home):
    with tarfile.open(Path(__file__).with_name("study-1.tar.gz")) as archive:
        archive.extractall(home, filter="data")
    return Study(str(home / "tiny.yaml"))


def refuse(*_, **__):
    raise AssertionError("this must not be computed again")


def test_runs_scores_and_rows_are_those_of_the_tag(stored, home, monkeypatch):
    parts = home / "figures" / "tiny" / "parts"
    before = {path.name: json.loads(gzip.decompress(path.read_bytes())) for path in parts.iterdir()}
    for module, name in ((loop, "train"), (loop, "replay"), (scores, "translate")):
        monkeypatch.setattr(module, name, refuse)
    chains = [stored.chain(slt, 1, [0.5], rewind=0.25), stored.chain(mp, 1, [0.5])]
    chains += [stored.chain(clt_control, 1, [0.5], rewind=0.25, signs="random")]
    found = stored.follow(chains, stored=True)
    assert {chain.technique: [run.id for run in chain.runs] for chain in found} == RUNS
    results.record(stored, found)
    after = {path.name: json.loads(gzip.decompress(path.read_bytes())) for path in parts.iterdir()}
    assert after == before


def test_an_interrupted_training_of_the_tag_goes_on(stored, capsys):
    [run] = stored.train([stored.ticket(2)])
    said = capsys.readouterr().err
    assert "step 9/12" in said and "step 6/12" not in said  # from its last checkpoint, not from the start
    assert [point["step"] for point in run.curve] == [3, 6, 9, 12]
    assert len(Store().ids()) == 5
