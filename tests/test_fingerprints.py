"""A change that alters results must raise RECIPE_VERSION: the final weights of one tiny training of each kind.

`fingerprints.json` holds, for each processor that recorded them, the hash of these weights, and for all others numbers
to compare within a tolerance. After a change that is meant to alter results: raise `params.RECIPE_VERSION`, delete the
file, run `SLT_RECORD=1 python -m pytest tests/test_fingerprints.py` and commit the new file. On a processor that is not
listed the same command adds its hashes.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from slt_lib.base import settings as params
from slt_lib.base.seeds import stream
from slt_lib.train.checkpoint import weights_hash

FILE = Path(__file__).with_name("fingerprints.json")
# Relative distance of theta_T - theta_0 on another processor. Seen between AVX2 and no vector units in bf16: up to 0.06
# in a first training, and 0.3 in a second one, whose mask and start come from the first. fp32: 1e-5.
TOLERANCES = {"dense": 0.1, "gradual": 0.1, "adam": 0.1, "fp32": 1e-3, "rewound": 0.5, "constant": 0.5, "lockstep": 0.5}
SETTINGS = {
    "seeds": [1],
    "training": {
        "model": {"layers": 1, "hidden": 32, "filter": 64, "heads": 2},
        "batch": {"rows": 16, "length": 64},
        "steps": 8,
        "checkpoint": 0.5,
        "precision": "bf16",
    },
    "keep": [0.25],
}


def dense(study):
    return study.ticket(1)


def rewound(study):
    [run] = study.train([dense(study)])
    return run.rewind(0.25).prune(by=run, sparsity=0.5)


KINDS = {
    "dense": dense,
    "gradual": lambda study: study.ticket(1).gradual(final=0.8),
    "rewound": rewound,
    "constant": lambda study: rewound(study).constant(),
    "adam": lambda study: study.ticket(1, "adam"),
    "lockstep": rewound,
    "fp32": dense,
}


def processor():
    """What the sums of a step depend on: vendor, vector units, and what oneDNN takes for bf16."""
    words = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words = {word for line in lines if line.startswith(("vendor_id", "flags")) for word in line.split()}
    kept = [word for word in ("AuthenticAMD", "GenuineIntel", "avx512_bf16", "amx_bf16", "amx_tile") if word in words]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *kept])


def learned(start, end):
    """64 random projections of all that a training changed: as far apart as the changes themselves."""
    change = torch.cat([(end[name] - start[name]).flatten() for name in sorted(end)]).double()
    draw = torch.from_numpy(stream(0, "fingerprint").standard_normal((64, len(change))))
    return draw @ change / len(change) ** 0.5


@pytest.fixture(scope="module")
def known():
    if not FILE.exists():
        FILE.write_text(json.dumps({"recipe": params.RECIPE_VERSION, "processors": {}, "learned": {}}))
    found = json.loads(FILE.read_text())
    assert found["recipe"] == params.RECIPE_VERSION, (
        f"{FILE.name} is of another recipe version; see the top of this file"
    )
    yield found
    if os.environ.get("SLT_RECORD"):
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_this_recipe_version(kind, make_study, monkeypatch, known):
    study = make_study(
        SETTINGS if kind != "fp32" else {**SETTINGS, "training": {**SETTINGS["training"], "precision": "fp32"}}
    )
    if kind == "lockstep":
        monkeypatch.setenv("SLT_LOCKSTEP", "2")
    ticket = KINDS[kind](study)
    [run] = study.train([ticket])
    found, here = learned(ticket.start().weights, run.weights()), processor()
    if os.environ.get("SLT_RECORD"):
        known["processors"].setdefault(here, {})[kind] = weights_hash(run.weights())
        known["learned"].setdefault(kind, [float(f"{value:.5g}") for value in found])
    if expected := known["processors"].get(here, {}).get(kind):
        assert weights_hash(run.weights()) == expected, "results changed: raise RECIPE_VERSION"
    wanted = torch.tensor(known["learned"][kind], dtype=torch.float64)
    assert (found - wanted).norm() < TOLERANCES[kind] * wanted.norm(), "results changed: raise RECIPE_VERSION"
