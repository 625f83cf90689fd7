"""A tiny study that trains in a fraction of a second; nothing of it is written outside of pytest's folders."""

import copy
import os
from pathlib import Path

import pytest
import torch
import yaml

os.environ["SLT_DEVICE"] = (
    os.environ.get("SLT_DEVICE") or "cpu"
)  # where bytes are promised; a test of a GPU asks for it
os.environ["SLT_PROGRESS"] = "lines"  # a picture takes longer than a tiny training
torch.set_num_threads(1)  # two cores are shared, and bytes are promised for one count of threads

SHARED = Path(__file__).parents[2] / "shared" / "data"
LONG = {f"test_{name}.py" for name in ("engine", "browser", "kill", "cluster", "distributed", "workers", "figures")}

TINY = {
    "rehearsal": True,
    "pairs": {"en-de": ["mp", "lt", "slt", "clt", "slt-mp", "mp-slt"]},
    "seeds": [1, 2],
    "levels": [0.5, 0.6, 0.8],
    "corpus": {"name": "grammar", "train": 200, "dev": 6, "test": 4, "seed": 1},
    "vocabulary": 120,
    "training": {
        "model": {"layers": 1, "hidden": 16, "filter": 32, "heads": 2},
        "batch": {"rows": 8, "length": 48},
        "steps": 12,
        "peak_lr": {"adafactor": 0.05},
        "warmup": 0.25,
        "checkpoint": 0.25,
        "gradual": {"every": 0.125, "until": 0.5},
        "dev_extra": 2,
        "dev_sentences": 2,
    },
    "keep": [0.25],
    "decoding": {"beam": 2, "extra": 2},
}


def changed(settings: dict, changes: dict) -> dict:
    """A copy with `changes` laid over it, mappings merged; None takes a key away."""
    result = copy.deepcopy(settings)
    for key, value in changes.items():
        if value is None:
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict) and "name" not in value:
            result[key] = changed(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture(scope="session")
def tiny() -> dict:
    """The settings of the tiny study; not to be changed in place."""
    return TINY


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty folder for study files, with SLT_RUNS and SLT_FIGURES in it."""
    for name in ("runs", "figures"):
        monkeypatch.setenv(f"SLT_{name.upper()}", str(tmp_path / name))
    monkeypatch.delenv("SLT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def study_file(home):
    """A function that writes the tiny study with `changes` laid over it, and returns its path as text."""

    def write(changes: dict | None = None, name: str = "tiny") -> str:
        path = home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(changed(TINY, changes or {})), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make_study(study_file):
    """A function that gives the tiny study with `changes` laid over it."""
    from slt_lib.study import Study

    return lambda changes=None, **options: Study(study_file(changes), **options)


@pytest.fixture(scope="session")
def session_study(tmp_path_factory):
    """The tiny study with a store that lives as long as the session: its runs are trained once."""
    from slt_lib.study import Study

    folder = tmp_path_factory.mktemp("session")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_RUNS", str(folder / "runs"))
        return Study(str(path))


@pytest.fixture(scope="session")
def data_root():
    """The folder of the corpora: SLT_DATA, or ../shared/data where that exists; tests that need it skip otherwise."""
    folder = Path(os.environ.get("SLT_DATA") or SHARED)
    if not folder.is_dir():
        pytest.skip("no corpora: SLT_DATA is not set, and there is no ../shared/data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_DATA", str(folder))
        yield folder


@pytest.fixture
def figure(record_property):
    """A function that counts cases under a name: they were tried, and are good where the test passes."""
    return lambda name, tried=1: record_property("figure", (name, tried))


def pytest_terminal_summary(terminalreporter):
    """The figures of the whole session, such as "kills survived 7 of 7"."""
    figures = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            for _, (name, tried) in (pair for pair in report.user_properties if pair[0] == "figure"):
                good, all_of_them = figures.get(name, (0, 0))
                figures[name] = good + tried * report.passed, all_of_them + tried
    for name, (good, tried) in sorted(figures.items()):
        terminalreporter.write_line(f"{name} {good} of {tried}")


def pytest_collection_modifyitems(items):
    """The longest files first: one that begins last would keep one core busy while the others idle."""
    items.sort(key=lambda item: item.path.name not in LONG)
