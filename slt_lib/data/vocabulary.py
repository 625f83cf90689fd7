"""One shared word-piece vocabulary for both languages of a pair: cased, and lossless apart from unseen characters.

The nearest equivalent of T2T's subword encoder in a kept library: WordPiece (greedy longest match) over words marked at
their start and runs of punctuation (FACTS.md section 4). The mark is U+2581: text that holds it gets a space there.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from slt_lib.base.errors import InputError
from slt_lib.transformer import EOS, PAD, UNKNOWN

SPECIAL = ["<pad>", "</s>", "<unk>"]
LIMIT_ALPHABET = 10_000


@dataclass(frozen=True)
class Encoded:
    """Sentences as ids, each closed by EOS: `flat` int32 [ids], `offsets` int64 [sentences + 1].

    Either may be mapped from a file; `flat` is uint16 there where the vocabulary fits.
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets).astype(np.int32)  # half the memory, for 40 million sentences

    def lists(self) -> list[list[int]]:
        return [self[i].tolist() for i in range(len(self))]


class Vocabulary:
    def __init__(self, text: str):
        """`text`: the JSON of a tokenizer. Raises ValueError where it is not one of ours."""
        try:
            special = [token["content"] for token in json.loads(text)["added_tokens"]]
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"not a vocabulary: {error}") from None
        if special != SPECIAL or [self.tokenizer.token_to_id(s) for s in SPECIAL] != [PAD, EOS, UNKNOWN]:
            raise ValueError(f"not a vocabulary with {', '.join(SPECIAL)} as ids 0, 1, 2")
        self.tokenizer.encode_special_tokens = True  # a sentence that holds "</s>" is text like any other
        self.text = text

    @classmethod
    def build(cls, sentences: Iterable[str], size: int) -> "Vocabulary":
        """`size` pieces, the special three included. Raises InputError where the text does not hold as many."""
        tokenizer = Tokenizer(
            models.WordPiece(unk_token=SPECIAL[UNKNOWN], continuing_subword_prefix="", max_input_chars_per_word=1000)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(prepend_scheme="never"),
                pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}▁]+"), "isolated"),
            ]
        )
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            continuing_subword_prefix="",
            limit_alphabet=LIMIT_ALPHABET,
            show_progress=False,
        )
        tokenizer.train_from_iterator((" " + line for line in sentences), trainer)
        built = tokenizer.get_vocab_size()
        if built != size:
            raise InputError(
                f"vocabulary: {size} pieces were asked for, but this text gives {built}; set it to {built}"
            )
        return cls(tokenizer.to_str())

    @cached_property
    def digest(self) -> str:
        """sha256 of the tokenizer's JSON."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __reduce__(self):
        return Vocabulary, (self.text,)  # another process gets all of it, what is set on the tokenizer too

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Ids of each sentence, EOS appended."""
        # the space marks the first word as a word's start; decode takes it off again
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch([" " + line for line in sentences])]
        offsets = np.concatenate([[0], np.cumsum([len(i) + 1 for i in ids], dtype=np.int64)]).astype(np.int64)
        flat = np.fromiter(chain.from_iterable((*i, EOS) for i in ids), dtype=np.int32, count=int(offsets[-1]))
        return Encoded(flat, offsets)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence; padding, EOS and unknown pieces are left out."""
        return [text.removeprefix(" ") for text in self.tokenizer.decode_batch(list(ids), skip_special_tokens=True)]
