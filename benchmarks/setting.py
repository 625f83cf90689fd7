"""The setting of the benchmark: the study, the number of steps and rounds, and the folder for its files.

Environment variables: BENCH_STUDY (default multi30k-large), BENCH_STEPS (steps of the models that decode),
BENCH_ROUNDS, and BENCH_SECONDS (seconds per system and round).
"""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.base.store import Store
from slt_lib.study import Study

ROOT = Path(__file__).resolve().parents[1]
WARM = 5  # steps before the measurement
GRAMMAR = {"name": "grammar", "train": 29000, "dev": 1014, "test": 1000, "seed": 1}  # as large as Multi30k
GRAMMAR_VOCABULARY = 2900  # the grammar has only a few more words


def number(name: str, default: int) -> int:
    """A whole number above 0 from the environment. Raises InputError for any other value."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not int(text):
        raise InputError(f"{name}={text}: a whole number above 0 is needed")
    return int(text)


@dataclass(frozen=True)
class Setting:
    """One study; models that decode are trained for `steps` steps. All files are under `folder`."""

    name: str
    steps: int
    rounds: int
    seconds: int
    folder: Path

    @staticmethod
    def read() -> "Setting":
        """The setting in the environment variables."""
        name = os.environ.get("BENCH_STUDY") or "multi30k-large"
        sizes = number("BENCH_STEPS", 1000), number("BENCH_ROUNDS", 3), number("BENCH_SECONDS", 12)
        return Setting(name, *sizes, Path(os.environ.get("SLT_BUILD") or ROOT / "build").absolute() / "bench")

    @functools.cached_property
    def study(self) -> Study:
        """The study on Multi30k if $SLT_DATA has it, otherwise on sentences of the grammar."""
        source = self.name if self.name.endswith(".yaml") else str(ROOT / "params" / f"{self.name}.yaml")
        raw = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        here = os.environ.get("SLT_DATA")
        if raw["corpus"]["name"] == "multi30k" and not (here and (Path(here) / "multi30k").is_dir()):
            print("no multi30k under SLT_DATA: measuring on the grammar's sentences", file=sys.stderr)
            raw |= {"corpus": GRAMMAR, "vocabulary": GRAMMAR_VOCABULARY, "pairs": {"en-de": ["slt"]}}
        path = self.folder / "study.yaml"
        write_bytes(path, yaml.safe_dump(raw).encode())
        return self._opened(path)

    @functools.cached_property
    def short(self) -> Study:
        """The study with only `steps` steps, at the learning rates of its first steps."""
        own = self.study.params.training
        raw = yaml.safe_load((self.folder / "study.yaml").read_text(encoding="utf-8"))
        warmup = min(1.0, own.warmup * own.steps / self.steps)
        raw["training"] |= {"steps": self.steps, "warmup": warmup, "checkpoint": 1.0}
        raw["keep"] = []
        path = self.folder / "short.yaml"
        write_bytes(path, yaml.safe_dump(raw).encode())
        return self._opened(path)

    def _opened(self, path: Path) -> Study:
        study = Study(str(path))
        study.store = Store(self.folder / "runs")  # not the user's store
        return study

    def label(self) -> str:
        """The setting as text for the CSV: corpus and sizes, independent of the study's name."""
        study = self.study
        sizes, batch = study.params.training.model, study.params.training.batch
        return (
            f"corpus {study.corpus.name} {study.pair}, {sizes.layers}+{sizes.layers} layers "
            f"{sizes.hidden}/{sizes.filter}, V {len(study.vocabulary)}, batch {batch.rows * batch.length}"
        )
