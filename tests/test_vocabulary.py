"""The vocabulary: lossless, the same in every process, and checked when it is read."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slt_lib.base.errors import InputError
from slt_lib.data import corpora
from slt_lib.data.vocabulary import SPECIAL, Vocabulary
from slt_lib.transformer import EOS, PAD, UNKNOWN

MADE = corpora.grammar("en-de", 300, 40, 20, 1)
LINES = [*MADE.train.source, *MADE.train.target]
CHARACTERS = "".join(sorted({character for line in LINES for character in line} - {" "}))


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.build(LINES, 300)


def round_trip(vocabulary, lines):
    return vocabulary.decode(vocabulary.encode(lines).lists())


def test_size_and_special_ids(vocabulary):
    assert len(vocabulary) == 300
    assert (PAD, EOS, UNKNOWN) == (0, 1, 2)
    assert [vocabulary.tokenizer.id_to_token(i) for i in range(3)] == SPECIAL == ["<pad>", "</s>", "<unk>"]


def test_text_comes_back(vocabulary):
    unseen = [*MADE.dev.source, *MADE.dev.target]
    known = [line for line in unseen if set(line) <= set(CHARACTERS + " ")]
    assert len(known) > 60
    for lines in (LINES, known):
        assert round_trip(vocabulary, lines) == lines


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=CHARACTERS + " ", max_size=40))
@example("")
@example("  two  spaces, also around  ")
@example(".,.?. ,,")
def test_any_string_of_known_characters_comes_back(vocabulary, text):
    assert round_trip(vocabulary, [text]) == [text]


def test_case_is_kept(vocabulary):
    assert round_trip(vocabulary, ["The THE the tHe"]) == ["The THE the tHe"]


def test_ids_are_sentences_closed_by_the_end(vocabulary):
    encoded = vocabulary.encode(LINES[:50])
    assert len(encoded) == 50 and encoded.lengths.tolist() == [len(ids) for ids in encoded.lists()]
    assert encoded.flat.dtype == np.int32 and encoded.offsets.dtype == np.int64
    for ids in encoded.lists():
        assert ids[-1] == EOS and all(3 <= i < 300 for i in ids[:-1])
    assert vocabulary.encode([]).lists() == [] and vocabulary.encode([""])[0][-1] == EOS


def test_decoding_leaves_out_what_is_no_word(vocabulary):
    [ids] = vocabulary.encode(["The man"]).lists()
    assert vocabulary.decode([[*ids, PAD, PAD], [UNKNOWN, *ids], []]) == ["The man", "The man", ""]


def test_an_unseen_character_is_unknown(vocabulary):
    [ids] = vocabulary.encode(["The ☃ man"]).lists()
    assert UNKNOWN in ids and PAD not in ids
    assert "man" in vocabulary.decode([ids])[0]


@pytest.mark.parametrize("text", ["<pad>", "</s>", "The man </s> <pad>."])
def test_words_that_look_special_are_text(vocabulary, text):
    # PAD or EOS inside a sentence would hide the rest of it from the model.
    assert not {PAD, EOS} & set(vocabulary.encode([text]).lists()[0][:-1])


def test_same_text_same_vocabulary_in_fresh_processes(vocabulary):
    # Hash maps have another order in each process; it must not reach the pieces.
    program = (
        "from slt_lib.data import corpora; from slt_lib.data.vocabulary import Vocabulary;"
        "made = corpora.grammar('en-de', 300, 40, 20, 1);"
        "print(Vocabulary.build([*made.train.source, *made.train.target], 300).digest)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in started] == [vocabulary.digest] * 2


def test_digest_follows_text_and_size(vocabulary):
    assert Vocabulary(vocabulary.text).digest == vocabulary.digest
    others = [Vocabulary.build(LINES, 299), Vocabulary.build([*LINES, "zebra zebra zebra zebra"], 300)]
    assert len({vocabulary.digest, *(other.digest for other in others)}) == 3


def test_more_pieces_than_the_text_holds():
    with pytest.raises(InputError) as caught:
        Vocabulary.build(["ab ab", "ba"], 5000)
    message = str(caught.value)
    possible = int(message.rsplit(" ", 1)[1])
    assert message == f"vocabulary: 5000 pieces were asked for, but this text gives {possible}; set it to {possible}"
    assert len(Vocabulary.build(["ab ab", "ba"], possible)) == possible  # the advice holds


def test_fewer_pieces_than_characters():
    with pytest.raises(InputError, match=r"vocabulary: 8 pieces were asked for, but this text gives \d+"):
        Vocabulary.build(LINES, 8)


@pytest.mark.parametrize("junk", ["", "junk", "[]", "null", "{}", '{"added_tokens": []}', "\x00"])
def test_what_is_no_vocabulary(junk):
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary(junk)


def test_a_vocabulary_of_others(vocabulary):
    other = json.loads(vocabulary.text)
    other["added_tokens"][0]["content"] = "[PAD]"
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary(json.dumps(other))
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary(vocabulary.text[: len(vocabulary.text) // 2])
