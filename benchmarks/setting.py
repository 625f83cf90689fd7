"""What is measured: a study's model on real text, for how long, and where the benchmark keeps its things.

Environment: BENCH_STUDY (default multi30k-large), BENCH_STEPS (training of the models that decode), BENCH_ROUNDS and
BENCH_SECONDS (rounds, and seconds a system in each).
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
WARM = 5  # steps before the clock counts
GRAMMAR = {"name": "grammar", "train": 29000, "dev": 1014, "test": 1000, "seed": 1}  # as large as Multi30k
GRAMMAR_VOCABULARY = 2900  # it holds few words more


def number(name: str, default: int) -> int:
    """A whole number above 0 from the environment. Raises InputError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not int(text):
        raise InputError(f"{name}={text}: a whole number above 0 is needed")
    return int(text)


@dataclass(frozen=True)
class Setting:
    """One study, its steps cut to `steps` for the models that decode; all of it is kept under `folder`."""

    name: str
    steps: int
    rounds: int
    seconds: int
    folder: Path

    @staticmethod
    def read() -> "Setting":
        """The setting that the environment asks for."""
        name = os.environ.get("BENCH_STUDY") or "multi30k-large"
        sizes = number("BENCH_STEPS", 1000), number("BENCH_ROUNDS", 3), number("BENCH_SECONDS", 12)
        return Setting(name, *sizes, Path(os.environ.get("SLT_BUILD") or ROOT / "build").absolute() / "bench")

    @functools.cached_property
    def study(self) -> Study:
        """The study on Multi30k where $SLT_DATA has it, else on the grammar's sentences."""
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
        """The study with `steps` steps in place of its own, at the learning rates of its own first steps."""
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
        study.store = Store(self.folder / "runs")  # what is trained here is no part of the user's store
        return study

    def label(self) -> str:
        """The setting in words, for the CSV: the corpus and all sizes, whatever the study is called."""
        study = self.study
        sizes, batch = study.params.training.model, study.params.training.batch
        return (
            f"corpus {study.corpus.name} {study.pair}, {sizes.layers}+{sizes.layers} layers "
            f"{sizes.hidden}/{sizes.filter}, V {len(study.vocabulary)}, batch {batch.rows * batch.length}"
        )
