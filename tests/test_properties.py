"""Not silently wrong: what must hold whatever the input, where the tests of each room do not draw it already."""

import os
import random
import subprocess
import sys

import pytest
import sacrebleu
import yaml
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_decoding import RandomModel, slow_beam_search, slow_greedy

from slt_lib.base import settings as params
from slt_lib.base.store import digest
from slt_lib.evaluation import scoring
from slt_lib.evaluation.decoding import translate
from slt_lib.study import Study
from slt_lib.study.scores import score_id
from slt_lib.techniques import RECIPES
from slt_lib.transformer import EOS

few = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Identity ------------------------------------------------------------


def respelled(value, draw: random.Random):
    """The same settings as another hand would write them: keys in another order, whole numbers with a point."""
    if isinstance(value, dict):
        return {key: respelled(value[key], draw) for key in draw.sample(list(value), len(value))}
    if isinstance(value, list):
        return [respelled(item, draw) for item in value]
    if isinstance(value, float) and value == int(value) and draw.random() < 0.5:
        return int(value)
    return value


@few
@given(st.randoms(use_true_random=False), st.sampled_from([0.25, 0.5, 1.0]))
def test_order_of_keys_and_spelling_of_numbers_change_nothing(draw, fraction):
    raw = {**TINY, "keep": [fraction], "decoding": {"alpha": 1.0, "beam": 2}}
    raw["training"] = {**TINY["training"], "warmup": fraction, "checkpoint": fraction}
    text = yaml.safe_dump(respelled(raw, draw), sort_keys=False)
    text = text.replace("0.25", draw.choice(["0.25", ".25", "2.5e-1", "0.250"]))
    assert digest(params.parse(yaml.safe_load(text), "x").model_dump()) == digest(params.parse(raw, "x").model_dump())


@few
@given(st.integers(1, 9), st.floats(0, 3), st.integers(0, 200))
def test_decoding_changes_the_score_alone(session_study, beam, alpha, extra):
    [run] = session_study.train([session_study.ticket(1)])
    before, first = session_study.params, (run.ticket.train_id, score_id(run, "test"))
    other = params.Decoding(beam=beam, alpha=alpha, extra=extra)
    try:
        session_study.params = before.model_copy(update={"decoding": other})
        [again] = session_study.train([session_study.ticket(1)])
        assert again.ticket.train_id == first[0]
        assert (score_id(again, "test") == first[1]) == (other == before.decoding)
    finally:
        session_study.params = before


# Decoding ------------------------------------------------------------

SOURCES = st.lists(st.lists(st.integers(2, 6), max_size=6).map(lambda ids: [*ids, EOS]), max_size=9)


@few
@given(SOURCES, st.integers(1, 10), st.integers(0, 99), st.integers(0, 6))
def test_beam_1_is_greedy_for_any_batch(sources, batch, seed, extra):
    model = RandomModel(seed=seed)
    expected = [slow_greedy(model, source, extra) for source in sources]
    assert translate(model, sources, beam=1, extra=extra, batch_sentences=batch) == expected


@few
@given(SOURCES, st.integers(1, 10), st.integers(2, 4), st.integers(0, 99))
def test_no_sentence_is_lost_or_swapped(sources, batch, beam, seed):
    model = RandomModel(seed=seed, ending=-1.0)
    expected = [slow_beam_search(model, source, beam, alpha=0.6, extra=2) for source in sources]
    assert translate(model, sources, beam=beam, extra=2, batch_sentences=batch) == expected


# Scoring ------------------------------------------------------------

WORDS = st.sampled_from(
    ["der", "Mann", "mann", "sieht", "3,5", "U.S.", "&amp;", '"so"', "ein-zwei", "☃", "l'eau", "?", ""]
)
LINES = st.lists(st.tuples(*[st.lists(WORDS, max_size=9).map(" ".join)] * 2), min_size=1, max_size=6)


@few
@given(LINES)
def test_scores_are_sacrebleu_s_of_the_raw_files(tmp_path, lines):
    for name, side in zip(("hypotheses", "references"), zip(*lines, strict=True), strict=True):
        (tmp_path / name).write_text("".join(line + "\n" for line in side), encoding="utf-8")
    found, wanted = ((tmp_path / name).read_text("utf-8").split("\n")[:-1] for name in ("hypotheses", "references"))
    counts = scoring.sentence_statistics(*map(list, zip(*lines, strict=True)))
    assert scoring.corpus_bleu(counts) == pytest.approx(sacrebleu.corpus_bleu(found, [wanted]).score, abs=1e-9)
    assert scoring.corpus_ter(counts) == pytest.approx(sacrebleu.corpus_ter(found, [wanted]).score, abs=1e-9)


# Same seed, same bytes ------------------------------------------------------------


def test_same_seed_same_bytes_in_a_fresh_process(make_study, home):
    """Dense, gradually pruned and sparse: here, and in a process of its own whose hashes are salted otherwise."""
    program = """
import sys, torch
from slt_lib.study import Study
from slt_lib.techniques import RECIPES
torch.manual_seed(7)
study = Study(sys.argv[1], levels=[0.5])
study.follow([study.chain(RECIPES[name], 1) for name in ("slt", "mp")])
"""
    study = make_study(levels=[0.5])
    study.follow([study.chain(RECIPES[name], 1) for name in ("slt", "mp")])
    environment = os.environ | {"SLT_RUNS": str(home / "other"), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", program, str(home / "tiny.yaml")], env=environment, check=True)
    here, there = (
        {
            str(path.relative_to(home / name)): path.read_bytes()
            for path in (home / name).rglob("*")
            if path.is_file() and path.suffix != ".lock" and path.name != "provenance.json"
        }
        for name in ("runs", "other")
    )
    assert here == there and sum(name.endswith("run.json") for name in here) == 3
    assert Study(str(home / "tiny.yaml")).vocabulary.digest == study.vocabulary.digest
