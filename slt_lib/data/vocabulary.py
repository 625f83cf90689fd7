"""One shared word-piece vocabulary for both languages of a pair: cased, and lossless apart from unseen characters.

It is the nearest equivalent of T2T's subword encoder in a maintained library: WordPiece (greedy longest match) over
words and runs of punctuation (FACTS.md section 4). U+2581 marks the start of a word; in the text it becomes a space.
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


@dataclass(frozen=True)
class Encoded:
    """Sentences as ids, each closed by EOS: `flat` int32 or uint16 [ids], `offsets` int64 [sentences + 1]."""

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets).astype(np.int32)  # 40 million sentences take half the memory

    def lists(self) -> list[list[int]]:
        return [self[i].tolist() for i in range(len(self))]


class Vocabulary:
    def __init__(self, text: str):
        """`text`: the JSON of a tokenizer that `build` made. Raises ValueError if it is another."""
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
        """`size` pieces, including the three special ones. Raises InputError if the text does not give as many."""
        prefix = {"continuing_subword_prefix": ""}
        tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL[UNKNOWN], max_input_chars_per_word=1000, **prefix))
        words = pre_tokenizers.Metaspace(prepend_scheme="never")
        punctuation = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}▁]+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, punctuation])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        options = {"special_tokens": SPECIAL, "limit_alphabet": 10_000, "show_progress": False, **prefix}
        trainer = trainers.WordPieceTrainer(vocab_size=size, **options)
        tokenizer.train_from_iterator((" " + line for line in sentences), trainer)
        built = tokenizer.get_vocab_size()
        if built != size:
            raise InputError(
                f"vocabulary: {size} pieces were asked for, but this text gives {built}; set it to {built}"
            )
        return cls(tokenizer.to_str())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokenizer's JSON."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __reduce__(self):
        return Vocabulary, (self.text,)  # the tokenizer itself loses `encode_special_tokens`

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Ids of each sentence, EOS appended."""
        # The space marks the start of the first word. `decode` removes it.
        ids = [[*encoding.ids, EOS] for encoding in self.tokenizer.encode_batch([" " + line for line in sentences])]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(offsets[-1]))
        return Encoded(flat, offsets)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence; padding, EOS and unknown pieces are left out."""
        return [text.removeprefix(" ") for text in self.tokenizer.decode_batch(list(ids), skip_special_tokens=True)]
