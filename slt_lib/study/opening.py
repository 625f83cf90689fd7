"""An opened study: the parameters of a study file for one pair, with corpus, vocabulary and store."""

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from slt_lib.base import distributed
from slt_lib.base import settings as params
from slt_lib.base.devices import device, threads
from slt_lib.base.errors import InputError
from slt_lib.base.store import Store, digest, recall, remember
from slt_lib.data import corpora, wmt14
from slt_lib.data.vocabulary import Vocabulary
from slt_lib.study.operations import Context
from slt_lib.study.tickets import check_seed, number
from slt_lib.train import loop as training
from slt_lib.transformer import Shape, Transformer


class Opened:
    """A study file's parameters for one pair, with its corpus, vocabulary and store.

    `computes`: False for a plan, which neither trains nor measures anything.
    """

    computes = True

    def __init__(self, study: str = "quick", pair: str = "", seeds: Iterable[int] = (), levels: Iterable[float] = ()):
        """`study`: name of a file in params/; `pair`, `seeds`, `levels`: empty for the study's own.

        Raises InputError for an invalid study, pair, seed or level.
        """
        for key, text in (("study", study), ("pair", pair)):
            if not isinstance(text, str):
                raise InputError(f"{key}: {text!r} is not a name; give it as text")
        self.asked = study
        self.name = params.name_of(study)
        self.params = params.load(study)
        self.pair = pair or next(iter(self.params.pairs))
        if self.pair not in self.params.pairs:
            raise InputError(f"pair {pair!r}: {self.file()} has {', '.join(self.params.pairs)}")
        if not isinstance(self.params.corpus, params.Wmt14):
            try:
                corpora.languages_of(self.pair, self.params.corpus.name)
            except InputError as error:
                raise InputError(f"{self.file()}: pairs: {error}") from None
        self.seeds = _listed("seeds", seeds, check_seed) or list(self.params.seeds)
        self.levels = _listed("levels", levels, number) or list(self.params.levels)
        try:
            params.check_seeds(self.seeds)
            params.check_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.store = Store()
        self._prepared = False

    def __reduce__(self):  # a worker process opens the study once; no data is sent
        return _opened, (type(self), self.asked, self.pair, tuple(self.seeds), tuple(self.levels))

    def file(self) -> str:
        """Path of the study file, for error messages."""
        return os.path.relpath(params.file_of(self.asked))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.pair}, seeds {self.seeds}, levels {self.levels})"

    def require_levels(self, key: str, levels: Iterable[float]) -> None:
        """Raise InputError, which names `key`, for a level that the study does not have."""
        for level in levels:
            if level not in self.levels:
                raise InputError(f"{key}: {level} is not a level of {self.name}, which has {self.levels}")

    # Data ------------------------------------------------------------

    @functools.cached_property
    def corpus(self) -> corpora.Corpus:
        """The text of the study file for the pair; it may be downloaded first. Raises InputError if it is not there."""
        match self.params.corpus:
            case params.Grammar() as made:
                return corpora.grammar(self.pair, made.train, made.dev, made.test, made.seed)
            case params.Multi30k():
                return corpora.multi30k(self.pair)
            case params.Files() as own:
                return corpora.files(own.folder, self.pair, own.tests)
            case params.Wmt14() as public:
                return wmt14.corpus(self.pair, public, self.store)

    def corpus_at_hand(self) -> bool:
        """Whether the corpus can be opened without a download, a preparation or a wait for another process."""
        match self.params.corpus:
            case params.Multi30k():
                return corpora.multi30k_at_hand(self.pair)
            case params.Wmt14() as public:
                return wmt14.at_hand(self.pair, public, self.store)
        return True

    def vocabulary_file(self) -> Path:
        """Path of the stored vocabulary for this corpus and size."""
        sample = self.corpus.train.sample
        of = {"corpus": self.corpus.digest, "size": self.params.vocabulary}
        of |= {"tokenizers": importlib.metadata.version("tokenizers")} | ({"sample": sample} if sample else {})
        return self.store.path / "vocabularies" / f"{digest(of)[:32]}.json"

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the training text: read from the store, or built in memory. `prepare` stores it."""
        return self._vocabulary[0]

    @functools.cached_property
    def _vocabulary(self) -> tuple[Vocabulary, bool]:
        """The vocabulary, and whether the store has it."""
        path, size = self.vocabulary_file(), self.params.vocabulary
        if (stored := recall(path, "tokenizer")) is not None:
            with contextlib.suppress(ValueError):
                if len(found := Vocabulary(stored["tokenizer"])) == size:
                    return found, True
            print(f"{path} is not a vocabulary of {size} word pieces; building it again", file=sys.stderr)
        try:
            return Vocabulary.build(self.corpus.train.sentences(), size), False
        except InputError as error:
            raise InputError(f"{self.file()}: {error}") from None

    def prepare(self) -> None:
        """Open the corpus, then build and store the vocabulary unless it is stored; rank 0 does this first.

        `data`, `Study.train` and `Study.follow` call it. Nothing else builds and stores data.
        """
        if self._prepared:
            return
        with distributed.in_turn(), self.store.lock(f"vocabulary-{self.vocabulary_file().stem}"):
            vocabulary, stored = self._vocabulary
            if not stored and distributed.first():
                remember(self.vocabulary_file(), {"tokenizer": vocabulary.text})
        self._prepared = True

    @functools.cached_property
    def data(self) -> training.Data:
        """The encoded corpus, as the trainer reads it; see `prepare`."""
        self.prepare()
        train, dev = self.corpus.train, self.corpus.dev
        sides = train.encoded(self.vocabulary)
        return training.Data(self.vocabulary, *sides, self.vocabulary.encode(dev.source), list(dev.target))

    @property
    def context(self) -> Context:
        """What the study's tickets need from it."""
        return Context(self.params.training, self.corpus.digest, self.vocabulary.digest, self.params.vocabulary)

    def model(self) -> Transformer:
        """A model of the study's shape, weights not initialised."""
        return training.new_model(self.params.training, self.params.vocabulary)

    def loaded(self, weights: Mapping[str, Tensor]) -> Transformer:
        """A model with these weights on this process's device."""
        model = self.model()
        model.load_state_dict(weights)
        return model.to(device())

    @functools.cached_property
    def outline(self) -> Transformer:
        """The model on the meta device, where nothing is allocated."""
        with torch.device("meta"):
            return self.model()

    @property
    def shape(self) -> Shape:
        """Sizes of the study's model."""
        return self.outline.shape

    @functools.cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Parameter name -> shape."""
        return {name: tensor.shape for name, tensor in self.outline.state_dict().items()}

    def threads(self):
        """Context in which PyTorch uses the study's number of threads."""
        return threads(self.params.threads)


def _listed(key: str, values, check: Callable) -> list:
    """A list given by papermill or a person, each value checked; `-p seeds 1` gives a number."""
    if not isinstance(values, list | tuple | range):
        raise InputError(f"{key}: {values!r} is not a list; write [{'' if values is None else values}]")
    return [check(key, value) for value in values]


@functools.cache
def _opened(kind: type[Opened], *asked) -> Opened:
    return kind(*asked)
