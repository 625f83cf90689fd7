"""The study file `params/<study>.yaml` with checked types, and the table of techniques.

Unknown keys and wrong types are errors that name the file and the key. Durations are fractions of `steps`, as in the
paper. A sparsity is a fraction from 0 to 1. Write 1.0e-4, never 1e-4, which YAML reads as text.
"""

import difflib
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slt_lib import schedules
from slt_lib.base.errors import InputError

RECIPE_VERSION = 2  # raise by hand when a change of code changes the weights of a run
COMPARISONS = tuple(
    "signs frankle rewind source one-shot stepwise switch optimizer average final controls again scope criterion "
    "subnetworks stability".split()
)
REWIND = 0.05  # theta_t of the paper's chains: 25k of 500k steps
REWIND_POINTS = (0.025, 0.075, 1.0)  # and of its ablation: 12.5k, 37.5k, 500k (section 5)


@dataclass(frozen=True)
class Technique:
    """Label in tables and plots, notebook, and the colour, marker and line style of the curve."""

    label: str
    notebook: str
    colour: str
    marker: str
    line: str = "-"


# Name in files and on the command line -> its row, in the order of the paper's Table 1. The colours are those of Okabe
# and Ito, without yellow, which is hard to see on white.
TECHNIQUES = {
    "mp": Technique("MP", "02_mp", "#0072B2", "o"),
    "lt": Technique("LT", "03_lt", "#E69F00", "s"),
    "slt": Technique("SLT", "04_slt", "#009E73", "^"),
    "clt": Technique("CLT", "05_clt", "#CC79A7", "D"),
    "slt-mp": Technique("SLT-MP", "06_slt_mp", "#D55E00", "P", "-."),
    "mp-slt": Technique("MP-SLT", "07_mp_slt", "#56B4E9", "v", "-."),
}
DENSE = Technique("dense", "01_dense", "#222222", "*", "--")  # always run, so no study file lists it

Fraction = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout or label smoothing
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Eight = Annotated[int, Field(ge=8, multiple_of=8)]


class Base(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def known_keys(cls, raw):
        names = list(cls.model_fields)
        unknown = [str(key) for key in raw if key not in names] if isinstance(raw, dict) else []
        if unknown:
            close = difflib.get_close_matches(unknown[0], names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(names)}"
            raise ValueError(f"unknown key {unknown[0]!r}; {remedy}")
        return raw


class Grammar(Base):
    """Sentences that the code generates, without a download."""

    name: Literal["grammar"]
    train: Positive
    dev: Positive
    test: Positive
    seed: Natural = 1


class Multi30k(Base):
    """Captions of photographs, 29,000 pairs: en, de, fr."""

    name: Literal["multi30k"]


class Files(Base):
    """Your own text: train.<lang>, dev.<lang> and each of `tests` in `folder`, one sentence per line."""

    name: Literal["files"]
    folder: str
    tests: list[str] = Field(default=["test"], min_length=1)


class Wmt14(Base):
    """WMT14 as parquet files on the Hugging Face Hub, at pinned revisions: en-de, en-fr (FACTS.md section 6)."""

    name: Literal["wmt14"]
    news_commentary: Literal["v9", "v13"] = "v9"  # v9: wmt/wmt14; v13, en-de only: wmt/wmt_t2t, tensor2tensor's mix
    max_words: Positive | None = None  # leave out pairs with a longer side; words are separated by spaces
    max_ratio: Annotated[float, Field(ge=1)] | None = None  # leave out pairs whose lengths differ by a larger factor
    sample: Positive | None = None  # bytes per language that the vocabulary is built from; None: all


class Model(Base):
    """Sizes of the Transformer and its three dropout rates (FACTS.md section 1)."""

    layers: Positive
    hidden: Eight
    filter: Eight
    heads: Positive
    residual_dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    relu_dropout: Rate = 0.1

    @model_validator(mode="after")
    def heads_divide(self):
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class BatchShape(Base):
    """Rows and their length in word pieces. `packed`: several sentence pairs share a row."""

    rows: Eight
    length: Eight
    packed: bool = True


class PeakRate(Base):
    """Highest learning rate of each optimizer. The paper's Adafactor has 0.01 at a warm-up of 10,000 steps."""

    adafactor: Annotated[float, Field(gt=0)]
    adam: Annotated[float, Field(gt=0)] = 2e-3


class Gradual(Base):
    """Magnitude pruning: a new mask every `every` of the steps, the last one at `until` (paper section 3.1)."""

    every: Duration = 0.02
    until: Duration = 0.8


class Decoding(Base):
    """Beam search on the test sets; T2T's defaults, as the paper names none (FACTS.md section 1)."""

    beam: Positive = 4
    alpha: Annotated[float, Field(ge=0)] = 0.6
    extra: Natural = 100


class Training(Base):
    """Everything that affects the weights except corpus, vocabulary, seed and ticket."""

    model: Model
    batch: BatchShape
    steps: Annotated[int, Field(ge=2)]
    optimizer: Literal["adafactor", "adam"] = "adafactor"
    peak_lr: PeakRate
    warmup: Duration = 0.02
    label_smoothing: Rate = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"
    order: Literal["fresh", "same"] = "fresh"
    pruned: Literal["zeroed", "stale"] = "zeroed"
    thresholds: Literal["exact", "histogram"] = "exact"
    gradual: Gradual = Gradual()
    checkpoint: Duration = 0.05
    dev_beam: Positive = 1
    dev_extra: Natural = 100  # word pieces by which a translation of dev may exceed its source
    dev_sentences: Positive | None = None  # None: the whole dev set


class Params(Base):
    """A study: what to train, for which pairs, seeds and levels, and how it is scored."""

    rehearsal: bool = False
    pairs: dict[str, list[Literal[tuple(TECHNIQUES)]]] = Field(min_length=1)
    seeds: list[Natural] = Field(min_length=1)
    levels: list[float] = Field(min_length=1)
    corpus: Annotated[Grammar | Multi30k | Files | Wmt14, Field(discriminator="name")]
    vocabulary: Annotated[int, Field(ge=8)]
    training: Training
    keep: list[Fraction] = [REWIND]  # points of a training at which its weights are kept
    decoding: Decoding = Decoding()
    threads: Positive = 1
    accumulate: Positive = 1  # parts into which a process splits its rows of a batch, to save memory
    ablations: bool | list[Literal[COMPARISONS]] = False  # comparisons of notebook 08; true: the paper's
    dissect: bool = False  # notebook 10, for the first pair

    @field_validator("ablations", mode="before")
    @classmethod
    def known_ablations(cls, asked):
        unknown = [name for name in asked if name not in COMPARISONS] if isinstance(asked, list) else [asked]
        if unknown and not isinstance(asked, bool):
            raise ValueError(f"{unknown[0]!r} is none of true, false or a list of {', '.join(COMPARISONS)}")
        return asked

    @model_validator(mode="after")
    def consistent(self):
        check_levels(self.levels)
        check_seeds(self.seeds)
        if self.training.batch.rows % self.accumulate:
            rows, parts = self.training.batch.rows, self.accumulate
            raise ValueError(f"training.batch.rows ({rows}) must be a multiple of accumulate ({parts})")
        return self

    def kept_steps(self) -> set[int]:
        """Steps at which every run keeps its weights: those of `keep` and those that the ablations rewind to."""
        compared = self.ablations is True or (self.ablations and "rewind" in self.ablations)
        points = [*self.keep, *(REWIND_POINTS if compared else ())]
        return {schedules.at_step(point, self.training.steps) for point in points}


def check_seeds(seeds) -> None:
    """Raise ValueError unless all seeds differ."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)} must differ from each other")


def check_levels(levels) -> None:
    """Raise ValueError unless levels are increasing sparsities between 0 and 1."""
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"levels: {level} is not a sparsity between 0 and 1 (0.9 means 90%)")
    if any(a >= b for a, b in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"levels {list(levels)} must rise: a pruned weight does not come back")


def home() -> Path:
    """The project: the nearest parent of the working folder with a folder `params`, else the checkout of this library.

    A notebook in `notebooks/` and a job at the top find the same study, runs and figures.
    """
    for folder in (here := Path.cwd(), *here.parents):
        if (folder / "params").is_dir():
            return folder
    return Path(__file__).resolve().parents[2]


def name_of(study: str) -> str:
    """The name of a study that is given by its name or file."""
    return os.path.basename(study).removesuffix(".yaml")


def file_of(study: str) -> Path:
    """The file of a study that is given by its name or file."""
    return Path(study) if study.endswith(".yaml") else home() / "params" / f"{study}.yaml"


def load(study: str) -> Params:
    """Read `params/<study>.yaml`, or a path that ends in .yaml.

    Raises InputError, one line that names the file, the key and what it should be.
    """
    path = file_of(study)
    shown = os.path.relpath(path)
    if not path.is_file() or Path(study).name != study and not study.endswith(".yaml"):
        known = ", ".join(sorted(file.stem for file in (home() / "params").glob("*.yaml")))
        raise InputError(f"study {study!r}: there is no {shown}; known studies: {known or 'none'}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{shown}: can't be read ({error.strerror}); check its permissions") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        what = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{shown}: not YAML: {what}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{shown}: a study file is a mapping of keys to values; see params/quick.yaml")
    return parse(raw, shown)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with an error for a duplicate key, of which YAML would silently keep the second.

    Keys are compared before `<<` is merged in, because a written key may override a merged one.
    """

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys = [
            key.value if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key) for key, _ in node.value
        ]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        return node


def parse(raw: dict, where: str) -> Params:
    """`raw` as Params. Raises InputError naming `where` and the key."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_line(error)}") from None


def _line(error: ValidationError) -> str:
    """The first mistake in one line, and the number of the others."""
    first, more = error.errors()[0], error.error_count() - 1
    location, kind, given = list(first["loc"]), first["type"], first["input"]
    if location[:1] == ["corpus"]:
        del location[1:2]  # pydantic adds the name of the corpus to the path
    key = ".".join(map(str, location))
    if kind == "missing":
        text = f"key {key!r} is missing"
    elif kind == "union_tag_not_found":
        text = f"key '{key}.name' is missing"
    elif kind == "union_tag_invalid":
        text = f"{key}.name: {first['ctx']['tag']!r} is none of {first['ctx']['expected_tags']}"
    elif kind == "value_error":
        text = f"{key}: {first['ctx']['error']}".removeprefix(": ")
    else:
        power = isinstance(given, str) and re.fullmatch(r"[\d.]+[eE][+-]?\d+", given)
        text = f"{key}: {first['msg']}, not {reprlib.repr(given)}" + ("; write 1.0e-4, not 1e-4" if power else "")
    return text + (f" (and {more} more)" if more else "")
