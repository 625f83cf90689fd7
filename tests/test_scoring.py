"""Scores from counts against sacrebleu's own on the same raw text."""

import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from slt_lib.evaluation import scoring

REFERENCES = [
    'Ein Mann, der "Hallo" ruft, läuft über die Straße.',
    "Zwei Hunde spielen im Schnee; einer ist braun.",
    "Eine Frau mit rotem Hut verkauft 3,5 kg Äpfel.",
    "Das Kind schläft.",
    "Die Männer arbeiten seit 8:30 Uhr auf dem Dach des Hauses.",
    "Niemand ist da!",
]


def translations(seed=0, loss=0.2):
    """The references with words lost, exchanged and moved, as wrong as a weak model."""
    draw, hypotheses = random.Random(seed), []
    for line in REFERENCES * 4:
        words = [word if draw.random() > loss else draw.choice(line.lower().split()) for word in line.split()]
        cut = draw.randrange(len(words))
        hypotheses.append(" ".join(words[cut:] + words[:cut] if draw.random() < 0.3 else words[: max(1, cut + 2)]))
    return hypotheses


CASES = {
    "weak": (translations(), REFERENCES * 4),
    "perfect": (REFERENCES, REFERENCES),
    "empty line": (["", *REFERENCES[1:]], REFERENCES),
    "all empty": ([""] * len(REFERENCES), REFERENCES),
    "all wrong": (["foo bar baz qux quux"] * len(REFERENCES), REFERENCES),
    "no 4-gram matches": (["Ein Mann geht weg und Hunde spielen"] * len(REFERENCES), REFERENCES),
    "only 1-grams match": (["Hunde Ein Frau Mann Straße Kind"] * len(REFERENCES), REFERENCES),
    "short": ([" ".join(line.split()[:4]) for line in REFERENCES], REFERENCES),
    "no 4-grams at all": (["Das Kind"] * len(REFERENCES), REFERENCES),
    "long": ([line + " und noch vieles mehr" for line in REFERENCES], REFERENCES),
    "other case": ([line.title() for line in REFERENCES], REFERENCES),
    "spaces around": (["  " + line.replace(" ", "  ") + " \t" for line in REFERENCES], REFERENCES),
    "escaped": (["a &quot;b&quot; &amp; c &lt;d&gt;"] * 2, ['a "b" & c <d>', "a b c d"]),
    "empty reference": (["etwas", ""], ["", ""]),
    "nothing at all": (["", ""], ["", ""]),
}


def tokenised(lines):
    return [Tokenizer13a()(line) for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_scores_are_sacrebleus(case):
    hypotheses, references = CASES[case]
    expected = (
        sacrebleu.corpus_bleu(hypotheses, [references]).score,
        sacrebleu.corpus_ter(hypotheses, [references]).score,
        sacrebleu.corpus_ter(tokenised(hypotheses), [tokenised(references)]).score,
    )
    counts = scoring.sentence_statistics(hypotheses, references)
    from_counts = scoring.corpus_bleu(counts), scoring.corpus_ter(counts), scoring.corpus_ter(counts, "ter_13a")
    assert from_counts == pytest.approx(expected, abs=1e-9)
    assert scoring.bleu(hypotheses, references) == from_counts[0]
    assert all(type(value) is float for value in from_counts)


def test_cases_reach_what_they_are_named_for():
    counts = {name: scoring.sentence_statistics(*texts) for name, texts in CASES.items()}
    assert counts["no 4-gram matches"]["m4"].sum() == 0 < scoring.corpus_bleu(counts["no 4-gram matches"])
    assert scoring.corpus_bleu(counts["all wrong"]) == 0 and scoring.corpus_ter(counts["all wrong"]) >= 70
    assert counts["short"]["sys_len"].sum() < counts["short"]["ref_len"].sum()
    assert counts["no 4-grams at all"]["t4"].sum() == 0 == scoring.corpus_bleu(counts["no 4-grams at all"])
    assert scoring.corpus_ter(counts["other case"]) == 0 < scoring.corpus_ter(counts["weak"])
    assert scoring.corpus_bleu(counts["other case"]) < 50
    assert scoring.corpus_bleu(counts["perfect"]) == pytest.approx(100)


def test_counts_by_hand():
    counts = scoring.sentence_statistics(["a b c d e."], ["a b X d e ."])
    assert {name: value.tolist() for name, value in counts.items()} == {
        **{"sys_len": [6], "ref_len": [6], "m1": [5], "m2": [3], "m3": [1], "m4": [0]},
        **{"t1": [6], "t2": [5], "t3": [4], "t4": [3]},
        **{"ter_edits": [3], "ter_words": [6], "ter13a_edits": [1], "ter13a_words": [6]},
    }
    assert all(value.dtype == np.int64 for value in counts.values())


def test_signatures():
    hypotheses, references = CASES["weak"]
    found = scoring.signatures()
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert found["ter"].startswith("nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no")
    assert "|tok:13a+tercom|" in found["ter_13a"]
    metric = sacrebleu.BLEU()
    metric.corpus_score(hypotheses, [references])
    assert found["bleu"] == str(metric.get_signature())


def test_sacrebleus_command_line_says_the_same(tmp_path):
    hypotheses, references = CASES["weak"]
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "ter", "-w", "8"]
    output = subprocess.run([*command, "-f", "text"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    counts = scoring.sentence_statistics(hypotheses, references)
    values = {"bleu": scoring.corpus_bleu(counts), "ter": scoring.corpus_ter(counts)}
    for line, (name, value) in zip(output.splitlines(), values.items(), strict=True):
        assert f" {value:.8f}" in line and scoring.signatures()[name] in line


@pytest.mark.parametrize("score", [scoring.bleu, scoring.sentence_statistics])
def test_texts_that_do_not_fit(score):
    with pytest.raises(ValueError, match="2 hypotheses against 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no lines to score"):
        score([], [])


def test_leading_axes():
    counts = scoring.sentence_statistics(*CASES["weak"])
    lines = np.random.default_rng(0).integers(len(counts["m1"]), size=(3, 2, len(counts["m1"])))
    drawn = {name: value[lines] for name, value in counts.items()}
    for score in (scoring.corpus_bleu, scoring.corpus_ter, partial(scoring.corpus_ter, metric="ter_13a")):
        values = score(drawn)
        assert values.shape == (3, 2)
        assert values[2, 1] == score({name: value[lines[2, 1]] for name, value in counts.items()})


def test_many_systems_at_once(monkeypatch):
    references = ["a man is walking on the street ."] * 100
    systems = [["a man walks on the street ."] * k + references[k:] for k in (0, 20, 90)]
    wanted = [scoring.bleu(system, references) for system in systems]
    for cores in (1, 3):  # here, and in processes
        monkeypatch.setattr(scoring, "cores", lambda cores=cores: cores)
        assert scoring.bleu_of_each(systems, references) == wanted
    assert scoring._processes.cache_info().currsize == 1
    scoring._processes(3).shutdown()
    scoring._processes.cache_clear()
