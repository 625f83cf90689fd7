"""Notebook 10: states, similarity, attention, probes and words against closed forms and independent computations."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import LogisticRegression

from slt_lib import report, techniques
from slt_lib.analysis import activations, attention, probes, tasks, words
from slt_lib.analysis.similarity import Moments, complexity, similarity
from slt_lib.base.errors import InputError
from slt_lib.data import lexicon as lex
from slt_lib.data.grammar import generate
from slt_lib.data.vocabulary import Vocabulary
from slt_lib.evaluation import scoring
from slt_lib.report import dissect as show
from slt_lib.report import findings
from slt_lib.report.data import write_csv
from slt_lib.study import Study, dissect, results
from slt_lib.transformer import EOS, Shape, Transformer, theta_0

RANDOM = np.random.default_rng(1)


def gaussian(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def rotation(size, seed):
    return np.linalg.qr(gaussian(size, size, seed))[0]


def between(x, y):
    return similarity(Moments.of(x), Moments.of(y))


# Similarity ------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_all_three_are_one_under_rotation_scale_and_shift(seed, scale):
    x = gaussian(300, 6, seed) * np.arange(1, 7)
    found = between(x, scale * x @ rotation(6, seed + 1) + gaussian(1, 6, seed + 2))
    assert [found[name] for name in ("cka", "svcca", "pwcca")] == pytest.approx([1, 1, 1], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_invariances(seed):
    """CKA and SVCCA: rotations of either side. PWCCA: any invertible map of the other side. CKA is symmetric."""
    x = gaussian(200, 5, seed)
    y = x[:, :3] @ gaussian(3, 5, seed + 1) + gaussian(200, 5, seed + 2)
    found, turned = between(x, y), between(x @ rotation(5, seed), y @ rotation(5, seed + 1))
    assert turned["cka"] == pytest.approx(found["cka"], abs=1e-9)
    assert turned["svcca"] == pytest.approx(found["svcca"], abs=1e-9)
    mapped = between(x, y @ (rotation(5, seed) * [1, 2, 3, 4, 5]) @ rotation(5, seed + 3))
    assert mapped["pwcca"] == pytest.approx(found["pwcca"], abs=1e-6)
    assert between(y, x)["cka"] == pytest.approx(found["cka"], abs=1e-9)


def test_independent_gaussians_are_near_zero():
    """Debiased CKA has no floor; the canonical correlations have one of about the root of columns / rows."""
    found = between(gaussian(10_000, 16, 1), gaussian(10_000, 16, 2))
    assert abs(found["cka"]) < 0.005 and found["svcca"] < 0.06 and found["pwcca"] < 0.06 and found["neuron"] < 0.05
    small = [between(gaussian(100, 10, 2 * i), gaussian(100, 10, 2 * i + 1))["cka"] for i in range(200)]
    assert abs(np.mean(small)) < 0.01  # unbiased on few rows too, where the plain estimate is .17


def test_cka_is_the_ratio_of_song_s_u_statistics():
    """HSIC as the mean over all ordered 4-tuples of different rows (Song et al. 2012, eq. 5), on few rows."""
    x, y = gaussian(9, 2, 1), gaussian(9, 3, 2)
    y[:, 0] += x[:, 0]

    def hsic(a, b):
        k, q = ((m @ m.T) * (1 - np.eye(len(m))) for m in (a, b))
        n, ones = len(a), np.ones(len(a))
        total = np.trace(k @ q) + ones @ k @ ones * (ones @ q @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * ones @ k @ q @ ones) / (n * (n - 3))

    one, other = (Moments(m - m.mean(0), np.square(m - m.mean(0)).sum(1), *_principal(m)) for m in (x, y))
    assert similarity(one, other)["cka"] == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5, abs=1e-12)


def _principal(x):
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return values[::-1], vectors[:, ::-1]


def test_canonical_correlations_are_those_of_scikit_learn():
    x = gaussian(400, 4, 1)
    y = np.c_[x[:, :2] + 0.5 * gaussian(400, 2, 2), gaussian(400, 2, 3)]
    scores = CCA(n_components=4, scale=False, max_iter=5000, tol=1e-12).fit(x, y).transform(x, y)
    expected = np.array([pearsonr(a, b)[0] for a, b in zip(scores[0].T, scores[1].T, strict=True)])
    found = between(x, y)
    assert found["svcca"] == pytest.approx(expected.mean(), abs=1e-4)  # all components are needed for 99%
    centred = x - x.mean(0)
    variates = scores[0] / np.linalg.norm(scores[0], axis=0)
    shares = np.abs(variates.T @ centred).sum(1)
    assert found["pwcca"] == pytest.approx(shares @ expected / shares.sum(), abs=1e-3)


def test_svcca_drops_directions_without_variance():
    shared, noise = gaussian(500, 3, 1), 1e-4 * gaussian(500, 5, 2)
    other = 1e-4 * gaussian(500, 5, 3)
    found = between(np.c_[shared, noise], np.c_[shared, other])
    assert found["svcca"] == pytest.approx(1, abs=1e-6)
    assert 0.99 < found["pwcca"] < 1  # weighted by what a direction explains


def test_neurons_keep_their_index_or_not():
    x = gaussian(500, 8, 1)
    order = np.roll(np.arange(8), 1)
    assert between(x, -2 * x)["same_index"] == 1 and between(x, x)["neuron"] == pytest.approx(1)
    assert between(x, x[:, order])["same_index"] == 0 and between(x, x[:, order])["neuron"] == pytest.approx(1)
    x[:, 0] = 3.0  # a dead neuron has no partner
    assert between(x, x)["neuron"] == pytest.approx(7 / 8) and between(x, x)["same_index"] == 7 / 8


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_complexity_of_a_known_spectrum(variances):
    """Columns that are exactly orthogonal with given variances."""
    basis = np.linalg.qr(gaussian(100, len(variances) + 1, 1) - 0)[0]
    basis = np.linalg.qr(np.c_[np.ones(100), basis])[0][:, 1 : len(variances) + 1]
    x = basis * np.sqrt(100 * np.array(variances))
    found, shares = complexity(Moments.of(x)), np.sort(variances)[::-1] / np.sum(variances)
    assert found["participation"] == pytest.approx(1 / np.square(shares).sum())
    assert found["first"] == pytest.approx(shares[0])
    assert found["k99"] == 1 + int((np.cumsum(shares) < 0.99 - 1e-12).sum())


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (gaussian(50, 8), gaussian(50, 8), "they have 50 word pieces, but 80 are needed at width 8"),
        (gaussian(90, 8), gaussian(80, 8), "90 and 80 word pieces; compare models on the same text"),
        (np.ones((90, 8)), gaussian(90, 8), "the states are the same for all word pieces"),
    ],
)
def test_states_that_cannot_be_compared(one, other, message):
    with pytest.raises(InputError, match=message):
        between(one, other)


# States and attention ------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    found = Transformer(Shape(30, layers=2, hidden=8, filter=16, heads=2))
    found.load_state_dict(theta_0(found, 3))
    return found


def sentences(count, seed):
    draw = np.random.default_rng(seed)
    return [[*draw.integers(3, 30, draw.integers(2, 9)).tolist(), EOS] for _ in range(count)]


def sites(layers, side):
    return [f"{side}.{layer}" for layer in (*range(layers + 1), "norm")]


def test_the_states_are_those_of_the_model(model):
    """Sentence by sentence without padding; the decoder's output gives the model's own logits."""
    sources, targets = sentences(70, 1), sentences(70, 2)
    states, sentence = activations.gather(activations.traces(model, sources, targets))
    assert set(states) == {*sites(2, "encoder"), *sites(2, "decoder")}
    for number in (0, 33, 69):
        memory = model.encode(torch.tensor([sources[number]]))[0, :-1]
        assert torch.allclose(states["encoder.norm"][sentence["encoder"] == number], memory, atol=1e-5)
        [(_, batch)] = activations.batches([sources[number]], [targets[number]])
        own = model(batch)[0, :-1]
        assert torch.allclose(states["decoder.norm"][sentence["decoder"] == number], own, atol=1e-5)
        embedded = model.embed(torch.tensor(sources[number])) + model.target_space[0]
        embedded = embedded + model.positions[: len(sources[number])]
        assert torch.allclose(states["encoder.0"][sentence["encoder"] == number], embedded[:-1], atol=1e-5)
    alone, _ = activations.gather(activations.traces(model, sources))
    assert set(alone) == set(sites(2, "encoder"))
    assert torch.allclose(alone["encoder.2"], states["encoder.2"], atol=1e-5)


def test_attention_weights_give_the_output_of_the_module(model):
    """The recorded weights, times the values, are what the attention itself returns."""
    [(_, batch)] = activations.batches(sentences(3, 1), sentences(3, 2))
    module, calls = model.decoder[1].cross_attention, []
    hook = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[2], output)))
    with activations.recording(model) as (_, attention):
        model(batch)
    hook.remove()
    [(value, output)], found = calls, attention["cross", 2]
    assert torch.allclose(found.sum(-1), torch.ones(3, 2, batch.target.shape[1]))
    own = (found @ value).transpose(1, 2).flatten(-2) @ module.output.T
    assert torch.allclose(own, output, atol=1e-6)


def test_a_handmade_model_attends_where_it_is_told_to():
    """Zero queries attend evenly to what a piece may see; its entropy is the log of the number of visible keys."""
    model = Transformer(Shape(30, layers=1, hidden=8, filter=16, heads=2))
    weights = theta_0(model, 1)
    model.load_state_dict({name: w * 0 if name.endswith("query") else w for name, w in weights.items()})
    sources, targets = [[5, 6, 7, EOS], [8, 9, EOS]], [[4, 5, EOS], [6, 7, 8, EOS]]
    [trace] = activations.traces(model, sources, targets)
    for kind, seen in {"encoder": [4, 4, 4, 3, 3], "cross": [4, 4, 3, 3, 3], "decoder": [1, 2, 1, 2, 3]}.items():
        assert trace.visible[kind].tolist() == seen
        for row, count in zip(trace.attention[kind, 1], seen, strict=True):
            assert torch.allclose(row[:, :count], torch.full((2, count), 1 / count)) and not row[:, count:].any()
    found = attention.compare([trace], [trace])
    assert found["encoder", 1].entropy.tolist() == pytest.approx([(3 * np.log2(4) + 2 * np.log2(3)) / 5] * 2)
    assert not found["encoder", 1].correlation.any() and not found["encoder", 1].divergence.round(decimals=6).any()


def test_heads_against_scipy(model):
    """Row by row over the visible keys, with scipy's correlation, divergence and entropy."""
    other = Transformer(model.shape)
    other.load_state_dict(theta_0(other, 4))
    sources, targets = sentences(5, 1), sentences(5, 2)
    ones, others = (list(activations.traces(each, sources, targets)) for each in (model, other))
    for key, heads in attention.compare(ones, others).items():
        correlations, divergences, entropies = [], [], []
        for one, another in zip(ones, others, strict=True):
            for a, b, n in zip(one.attention[key], another.attention[key], one.visible[key[0]], strict=True):
                if n > 1:
                    p, q = a[1, :n].double().numpy(), b[0, :n].double().numpy()
                    correlations.append(pearsonr(p, q)[0])
                    divergences.append(jensenshannon(p, q, base=2) ** 2)
                    entropies.append(entropy(p, base=2))
        assert float(heads.correlation[1, 0]) == pytest.approx(np.mean(correlations), abs=1e-4)
        assert float(heads.divergence[1, 0]) == pytest.approx(np.mean(divergences), abs=1e-5)
        assert float(heads.entropy[1]) == pytest.approx(np.mean(entropies), abs=1e-5)


def test_heads_that_were_exchanged_are_matched_again(model):
    """Heads swapped in the other model: the same attention under another number."""
    swapped, half = model.state_dict(), model.shape.hidden // 2
    for name, weight in swapped.items():
        if name.endswith(("query", "key", "value")):
            swapped[name] = torch.cat([weight[half:], weight[:half]])
        elif name.endswith("output"):
            swapped[name] = torch.cat([weight[:, half:], weight[:, :half]], dim=1)
    other = Transformer(model.shape)
    other.load_state_dict(swapped)
    sources, targets = sentences(20, 1), sentences(20, 2)
    found = attention.compare(*(list(activations.traces(each, sources, targets)) for each in (model, other)))
    for heads in found.values():
        one, two = heads.rows()
        assert (one["matched_head"], two["matched_head"]) == (2, 1) == (one["best_head"], two["best_head"])
        assert one["matched_correlation"] == pytest.approx(1, abs=1e-3) and one["correlation"] < 0.99


def test_a_uniform_head_has_no_best_head():
    weights = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(5), (7, 2))).float()
    weights[:, 0] = 1 / 5
    trace = activations.Trace({}, {}, {("encoder", 1): weights}, {"encoder": torch.full((7,), 5)})
    rows = attention.compare([trace], [trace])["encoder", 1].rows()
    assert [(row["best_head"], row["best_correlation"] > 0) for row in rows] == [(0, False), (2, True)]


def test_models_of_another_shape_are_refused(model):
    other = Transformer(Shape(30, layers=1, hidden=8, filter=16, heads=2), seed=1)
    traces = [list(activations.traces(each, sentences(5, 1), sentences(5, 2))) for each in (model, other)]
    with pytest.raises(InputError, match="the models differ in layers, heads or sentences"):
        attention.compare(*traces)
    with pytest.raises(InputError, match="5 sources but 4 targets"):
        list(activations.traces(model, sentences(5, 1), sentences(4, 2)))


# Probes ------------------------------------------------------------


def planted(forms=40, each=30, columns=12):
    """States that hold a label of the sentence as a direction; word forms that have nothing to do with it."""
    count = forms * each
    labels = RANDOM.integers(0, 3, count)
    x = gaussian(count, columns, 5)
    x[:, :3] += 12 * np.eye(3)[labels]
    rows = [((i, 0, 1), f"label {label}", f"form {i % forms}") for i, label in enumerate(labels)]
    return probes.Task.of("planted", "syntax", rows), x


def test_a_probe_finds_a_planted_label_and_not_its_control():
    task, x = planted()
    found = [probes.probe(task, x, draw) for draw in range(3)]
    assert all(one["accuracy"] == 1 for one in found)
    assert np.mean([one["control"] for one in found]) < 0.45 and np.mean([one["majority"] for one in found]) < 0.4
    assert all(np.isnan(one["form_accuracy"]) for one in found)


def test_states_without_the_label_give_chance():
    task, _ = planted()
    found = np.mean([probes.probe(task, gaussian(len(task.labels), 12, 9), draw)["accuracy"] for draw in range(4)])
    assert abs(found - 1 / 3) < 0.06


def test_a_probe_has_converged():
    """States whose columns are almost equal, the label in what is left: as accurate as many steps make it."""
    draw = np.random.default_rng(0)
    noise = draw.standard_normal((2000, 20))
    labels = (noise @ draw.standard_normal((20, 5))).argmax(1).astype(str)
    x, fit, test = draw.standard_normal((2000, 1)) + 0.3 * noise, np.arange(1400), np.arange(1400, 2000)
    scaled = (x - x[fit].mean(0)) / x[fit].std(0)
    converged = LogisticRegression(max_iter=5000, tol=1e-7).fit(scaled[fit], labels[fit])
    expected = converged.score(scaled[test], labels[test])
    assert expected > 0.8 and probes.accuracy(x, labels, fit, test) == pytest.approx(expected, abs=0.01)


def test_a_probe_that_memorises_words_is_caught_by_the_control_and_by_new_forms():
    """States that are nothing but the word form: the control task is as easy, and new forms are at chance."""
    forms, labels = np.repeat(np.arange(30), 40), RANDOM.integers(0, 2, 30)
    rows = [((i, 0, 1), labels[form], form) for i, form in enumerate(forms)]
    task = probes.Task.of("lexical", "meaning", rows, by_form=True)
    found = [probes.probe(task, 5 * np.eye(30)[forms], draw) for draw in range(4)]
    assert all(one["accuracy"] == one["control"] == 1 for one in found)
    assert np.mean([one["form_accuracy"] for one in found]) < 0.8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.booleans())
def test_splits_share_no_sentence_and_no_form(draw, by_form):
    rows = [((i // 3, i % 3, i % 3 + 1), i % 2, f"w{i % 17}") for i in range(300)]
    task = probes.Task.of("any", "surface", rows, by_form=True)
    fit, test = task.split(draw, by_form)
    groups = task.forms if by_form else task.spans[:, 0]
    assert not set(groups[fit]) & set(groups[test]) and len(fit) + len(test) == 300
    labels = task.control(draw)
    assert all(len(set(labels[task.forms == form])) == 1 for form in set(task.forms))


def test_vectors_are_means_over_the_pieces_of_a_span():
    states, sentence = gaussian(7, 3), np.array([0, 0, 0, 1, 1, 2, 2])
    task = probes.Task(
        "t", "surface", np.array([[0, 0, 3], [2, 1, 2], [1, 0, 2]]), np.array(list("aba")), np.array([""] * 3)
    )
    [found] = probes.vectors(states, sentence, [task])
    assert np.allclose(found, [states[:3].mean(0), states[6], states[3:5].mean(0)])
    for span in ([1, 0, 3], [2, 1, 1]):
        wrong = probes.Task("t", "surface", np.array([span]), np.array(["a"]), np.array([""]))
        with pytest.raises(InputError, match="has a word outside of its sentence"):
            probes.vectors(states, sentence, [wrong])


def test_tasks_with_few_examples_are_left_out():
    rows = [((i, 0, 1), i % 2, "w") for i in range(59)]
    assert probes.Task.of("few", "surface", rows) is None
    assert probes.Task.of("one label", "surface", [((i, 0, 1), 0, "w") for i in range(99)]) is None
    rare = [((i, 0, 1), "rare" if i < 5 else i % 2, "w") for i in range(99)]
    assert set(probes.Task.of("rare", "surface", rare).labels) == {"0", "1"}


# Tasks ------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """Sentences of the grammar with their structures, and a vocabulary of them."""
    found = generate({"probe": 300}, 3, structure=True)["probe"]
    lines = [texts[0] for texts, _ in found]
    return lines, [structure for _, structure in found], Vocabulary.build(lines, 300)


def test_words_are_the_words_of_the_sentence(made):
    lines, _, vocabulary = made
    for line in lines[:50]:
        found = tasks.words(vocabulary, line)
        assert "".join(form for form, _, _ in found) == line.replace(" ", "")
        assert [start for _, start, _ in found] == [0, *(end for _, _, end in found[:-1])]
        assert found[-1][2] == len(vocabulary.encode([line])[0]) - 1


def test_labels_of_plain_text(made):
    lines, _, vocabulary = made
    texts = tasks.probed(lines)
    found = {task.name: task for task in tasks.corpus_tasks(vocabulary, lines)}
    assert len(texts) == 450 and all(
        sorted(a.split()) == sorted(b.split()) for a, b in zip(lines[1::2], texts[300:], strict=True)
    )
    swapped = found["swapped neighbours"]
    for span, label in zip(swapped.spans, swapped.labels, strict=True):
        assert (texts[span[0]] not in lines or span[0] >= 300) == (label == "swapped")
    ids = vocabulary.encode(lines).lists()
    for name, step in (("previous piece", -1), ("next piece", 1)):
        for (sentence, place, _), label in zip(found[name].spans, found[name].labels, strict=True):
            assert str(ids[sentence][place + step]) == label
            assert found[name].by_form
    for name in ("sentence length", "swapped neighbours"):  # a control label belongs to the last word
        for (sentence, *_), form in zip(found[name].spans, found[name].forms, strict=True):
            assert form == re.findall(r"\w+", texts[sentence])[-1].lower()
    content = found.get("word content")
    for span, label in zip(content.spans, content.labels, strict=True) if content else ():
        assert label in lines[span[0]].lower()


def test_labels_of_the_grammar(made):
    lines, structures, vocabulary = made
    found = {task.name: task for task in tasks.grammar_tasks(vocabulary, "en-de", lines, structures)}
    assert {task.group for task in found.values()} == {"morphology", "syntax", "meaning"}
    split = [tasks.words(vocabulary, line) for line in lines]
    for name, label_of in {
        "gender of the translation": lambda noun: noun.gender[0],
        "noun class": lambda noun: next(name for kinds, name in tasks.CLASSES.items() if noun.kind in kinds),
    }.items():
        for (sentence, start, end), label, form in zip(*vars_of(found[name]), strict=True):
            [word] = [word for word, *place in split[sentence] if place == [start, end]]
            assert word.lower() in [each.lower() for each in lex.NOUN[form].en] and label == label_of(lex.NOUN[form])
    tense = found["tense"]
    for (sentence, *_), label in zip(tense.spans, tense.labels, strict=True):
        assert label in {clause.tense for _, clause in structures[sentence].clauses}
        if label == "fut":
            assert "will" in lines[sentence].lower()
    for (sentence, *_), label in zip(found["negation"].spans, found["negation"].labels, strict=True):
        assert label == str("not" in lines[sentence].split())
    for role in ("subject", "object"):
        for (sentence, *_), label, head in zip(*vars_of(found[f"number of the {role}"]), strict=True):
            assert lex.NOUN[head].en[0 if label == "singular" else -1].lower() in lines[sentence].lower()
    lengths = {label: [] for label in ("flat", "embedded")}
    for (sentence, *_), label in zip(found["depth"].spans, found["depth"].labels, strict=True):
        lengths[label].append(len(split[sentence]))
    assert sorted(lengths["flat"]) == sorted(lengths["embedded"])  # depth cannot be read from the length


def vars_of(task):
    return task.spans.tolist(), task.labels.tolist(), task.forms.tolist()


def test_labels_of_your_own(made, tmp_path):
    lines, _, vocabulary = made
    path, places = tmp_path / "labels.tsv", [("dev", number) for number in range(1, 301)]
    assert tasks.own_tasks(path, vocabulary, lines, places) == []
    header = "\t".join(tasks.LABEL_COLUMNS)
    rows = [f"case\tsyntax\tdev\t{n}\t2\t{'ab'[n % 2]}" for n in range(1, 200)]
    rows += [f"mood\tmeaning\tdev\t{n}\t\t{'xy'[n % 2]}" for n in range(1, 400)]
    path.write_text("\n".join([header, *rows]))
    case, mood = tasks.own_tasks(path, vocabulary, lines, places)
    path.write_text(path.read_text().replace("\ta\n", '\t"\n'), encoding="utf-8-sig")  # a label is any text
    quoted, _ = tasks.own_tasks(path, vocabulary, lines, places)
    assert quoted.labels.tolist() == [{"a": '"'}.get(label, label) for label in case.labels]
    assert case.by_form and not mood.by_form  # labels of words are tested on new forms too
    assert (case.name, len(case.labels), mood.name, len(mood.labels)) == ("case", 199, "mood", 300)
    for (sentence, start, end), label, form in zip(*vars_of(case), strict=True):
        text = vocabulary.decode([vocabulary.encode([lines[sentence]])[0][start:end].tolist()])[0]
        assert text == lines[sentence].split()[1] and text.lower() == form and label == "ab"[(sentence + 1) % 2]
    for bad, message in {
        "task\tlabel": "the first line must be task, group, split, line, word, label",
        f"{header}\nx\tsyntax\tdev\tone\t\ta": "line 2: 6 cells with whole numbers as line and word",
        f"{header}\nx\tpoetry\tdev\t1\t\ta": "line 2: group 'poetry' is none of surface, morphology",
        f"{header}\nx\tsyntax\tdev\t1\t99\ta": "line 2: there is no word 99",
    }.items():
        path.write_text(bad)
        with pytest.raises(InputError, match=message):
            tasks.own_tasks(path, vocabulary, lines, places)


# Words ------------------------------------------------------------


def test_recall_by_frequency_counts_each_use_once():
    seen = {"a": 2000, "b": 3}
    found = words.recall_by_frequency(["a a c", "B"], ["a a a b", "b d"], seen)
    assert found == [("0", 0.0, 1), ("1-4", 0.5, 2), ("1000+", pytest.approx(2 / 3), 3)]
    assert words.frequencies(["A b", "a"]) == {"a": 2, "b": 1}


def test_numbers_and_nouns_that_are_kept():
    sources = ["Two dogs see 12 apples.", "Three houses."]
    references = ["Zwei Hunde sehen 12 Äpfel.", "Die Häuser."]  # its "three" is not translated: it does not count
    found = words.kept(["Zwei Katzen sehen 11 Äpfel.", "Ein Haus."], references, sources, "en-de")
    assert found == [("numbers", 0.5, 2), ("nouns", pytest.approx(2 / 3), 3)]
    assert words.kept(["7 a"], ["7 b"], ["7 c"], "xx-yy") == [("numbers", 1.0, 1)]


def test_bleu_by_length_is_that_of_each_part():
    sources = ["a b", "a b c", "a b c d", "a b c d e f g h"]
    hypotheses = ["the cat is on a mat", "a dog sits in the house now", "we all see one small dog", "x y z x y z"]
    references = ["the cat is on the mat", "a dog sits in this house now", "we all see two small dogs", "x y z x y w"]
    statistics = scoring.sentence_statistics(hypotheses, references)
    found = words.bleu_by_length(statistics, sources, bands=2)
    expected = [scoring.bleu(hypotheses[a:b], references[a:b]) for a, b in ((0, 2), (2, 4))]
    assert [(name, count) for name, _, count in found] == [("2-3", 2), ("4-8", 2)]
    assert [value for _, value, _ in found] == pytest.approx(expected)


def test_differences_are_marked():
    assert show.marked("a b c d", "a x c") == "a **x** c [...]"
    assert show.marked("a", "a") == "a" and show.marked("a", "*b|") == r"**\*b\|**"


# A study ------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A tiny study that was looked into: its figures folder, the study, and the models."""
    folder = tmp_path_factory.mktemp("dissect")
    data = {"name": "grammar", "train": 200, "dev": 40, "test": 20, "seed": 1}
    settings = TINY | {"pairs": {"en-de": ["slt"]}, "levels": [0.5, 0.8], "corpus": data, "rehearsal": False}
    model = {"layers": 2, "hidden": 16, "filter": 32, "heads": 2}
    settings["training"] = settings["training"] | {"model": model}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("runs", "figures"):
            patch.setenv(f"SLT_{name.upper()}", str(folder / name))
        patch.setattr(dissect, "PIECES", 160)
        study = Study(str(folder / "tiny.yaml"))
        levels = dissect.levels_of(study, [])
        runs = {seed: study.follow([study.chain(techniques.dense, seed)])[0].runs[0] for seed in study.seeds}
        chains = study.follow([study.chain(techniques.slt, seed) for seed in study.seeds])
        noise = study.follow([study.chain(techniques.stability, seed, copies=1) for seed in study.seeds])
        again = study.follow([study.chain(techniques.slt_control, seed, control="none") for seed in study.seeds])
        sparse = dissect.sparse(chains, levels)
        controls = dissect.controls(study, runs, noise, again, levels)

        def look():
            dissect.record_insides(study, runs, [*controls, *sparse], dissect.text(study, 100))
            lines, found = dissect.probe_tasks(study, 110)
            probed = dissect.chosen(study, sparse, ["slt"], [0.8])
            deeper = [one for one in controls if one.technique == "again" and one.sparsity == 0.8]
            dissect.record_probes(study, [*dissect.dense(runs), *deeper, *probed], lines, found, 2)
            dissect.record_words(study, [*dissect.dense(runs), *sparse], ["The dog sees two apples."])

        look()
        assert (folder / "figures" / "tiny" / "study.json").exists()  # so that a notebook can be the first to be run
        results.record(study, chains)
        yield folder / "figures" / "tiny", study, runs, controls, sparse, look


def test_the_files_of_a_study(looked):
    folder, _, _, controls, sparse, _ = looked
    frame = show.rows(folder, "dissect_similarity.csv", "en-de")
    assert [len(controls), len(sparse)] == [2 + 2 + 4 + 1, 4]
    assert len(frame) == (2 + 9 + 4) * 2 * 16  # models, sides, pairs of input, two layers and output
    assert (frame.same_index.isna() == (frame.technique == "seed")).all()  # two seeds have no common order
    same = show.similarity(folder, "en-de")
    dense = same[same.technique == "dense"]
    assert np.allclose(dense[["cka", "svcca", "pwcca", "neuron", "same_index"]], 1, atol=1e-4)
    assert (same[same.technique == "untrained"].cka < 1).all()
    heads = show.heads(folder, "en-de")
    assert set(zip(heads.kind, heads.layer, strict=True)) == {
        (kind, layer) for kind in activations.KINDS for layer in ("1", "2")
    }
    assert heads[heads.technique == "seed"].correlation.isna().all()
    assert not heads[heads.technique == "seed"].matched_correlation.isna().any()
    probed = show.probes(folder, "en-de")
    assert set(probed.group) == set(probes.GROUPS) and set(probed.draw) == {0, 1}
    assert set(show.rows(folder, "dissect_words.csv", "en-de").measure) >= {"bleu by length"}


def test_nothing_is_measured_twice(looked, monkeypatch):
    folder, *_, look = looked
    before = {path.name: path.read_bytes() for path in folder.glob("dissect_*.csv")}
    assert len(before) == 6
    for module, name in ((attention, "compare"), (probes, "probe"), (dissect, "translate")):
        monkeypatch.setattr(module, name, None)
    look()
    assert {path.name: path.read_bytes() for path in folder.glob("dissect_*.csv")} == before


def test_a_seed_looked_into_alone_replaces_only_its_rows(looked):
    folder, study, runs, _, _, look = looked
    before = show.rows(folder, "dissect_words.csv", "en-de")
    dissect.record_words(Study(study.asked, seeds=[2]), dissect.dense({2: runs[2]}))
    after = show.rows(folder, "dissect_words.csv", "en-de")
    assert after[after.seed == 1].equals(before[before.seed == 1])
    assert set(after.seed) == {1, 2} and set(after[after.seed == 2].technique) == {"dense"}
    look()
    assert show.rows(folder, "dissect_words.csv", "en-de").equals(before)


def test_the_report_comes_from_the_files_alone(looked, tmp_path, monkeypatch):
    folder = looked[0]
    for path in [*folder.glob("dissect_*.csv"), folder / "study.json"]:
        shutil.copy(path, tmp_path / path.name)
    assert "without results" not in findings.markdown(tmp_path, "en-de")
    names = [name for name, _ in show.all_plots(tmp_path, ["en-de"])]
    assert {"dissect_cka_en-de", "dissect_heatmap_slt_en-de", "dissect_layers_80_en-de"} <= set(names)
    texts = findings.render(tmp_path, ["en-de", "en-fr"])
    assert set(texts) == {
        f"dissect_{name}" for name in ("findings_en-de.md", "findings_en-de.csv", "translations_en-de.md")
    }
    judged = findings.judged(tmp_path, "en-de").set_index("finding")
    assert set(judged.verdict) <= {"holds", "fails", "undecided"} and not judged.effect.isna().any()
    for name in [name for name in vars(show) if name.startswith("plot_")]:
        monkeypatch.setattr(show, name, lambda *_: None)  # drawing takes long
    assert len(list(show.all_plots(tmp_path, ["en-de"], few=True))) == 6
    monkeypatch.setattr(report, "save_plot", lambda figure, folder, name: [folder / name])
    written = report.render(folder)
    assert {"dissect_findings_en-de.md", "dissect_cka_en-de"} <= set(written)
    assert "Movva and Zhao" in (folder / "summary.md").read_text()
    probed = pd.read_csv(tmp_path / "dissect_probes.csv", dtype=str)
    for forms, drawn in (("0.5", True), ("", False)):  # tasks without word forms have no such plot
        probed.assign(form_accuracy=forms).to_csv(tmp_path / "dissect_probes.csv", index=False)
        assert ("dissect_probes_form_accuracy_en-de" in dict(show.all_plots(tmp_path, ["en-de"]))) == drawn
    (tmp_path / "dissect_probes.csv").unlink()
    assert "Findings without results: 1, 5 to 7 (dissect_findings_en-de" in findings.markdown(tmp_path, "en-de")


def test_a_finding_in_closed_form(tmp_path):
    """Two levels and two seeds, with known similarities: the contrast is the difference of the two layers."""
    values = {("slt", 0.5): (0.9, 0.7), ("slt", 0.9): (0.8, 0.5)}
    rows = []
    for (technique, level), layers in values.items():
        for seed, shift in ((1, 0.0), (2, 0.02)):
            for layer, cka in zip((1, 2), layers, strict=True):
                own = cka + (shift if layer == 1 else 0)
                rows.append(["en-de", seed, technique, level, "encoder", layer, layer, own, 1, 1, 1, 1])
                rows.append(["en-de", seed, technique, level, "decoder", layer, layer, 1 - own, 1, 1, 1, 1])
    write_csv(tmp_path / "dissect_similarity.csv", show.FILES["dissect_similarity.csv"], rows)
    effects = findings.effects(tmp_path, "en-de")
    assert list(effects) == ["higher_diverge", "higher_diverge_decoder"]
    assert effects["higher_diverge"].to_numpy() == pytest.approx([0.2, 0.22, 0.3, 0.32])
    assert effects["higher_diverge_decoder"].to_numpy() == pytest.approx([-0.2, -0.22, -0.3, -0.32])
    about = {"study": "t", "rehearsal": False, "pairs": {"en-de": ["slt"]}, "levels": [0.5], "seeds": [1], "steps": 1}
    (tmp_path / "study.json").write_text(json.dumps(about | {"test_sets": {"en-de": ["test"]}}))
    judged = findings.judged(tmp_path, "en-de").set_index("finding")
    row = judged.loc["higher_diverge"]
    error = 0.02 / 2**0.5 / 2**0.5  # standard deviation of two values .02 apart, of the mean of two
    assert row.verdict == "holds" and row.effect == pytest.approx(0.21) and row.supported == "2 of 2"
    # the seeds differ by the same shift in both contrasts, which counts once: t of 1 degree of freedom
    assert (row.high - row.low) / 2 == pytest.approx(12.706205 * error, rel=1e-4)
    assert judged.loc["meaning_first"].verdict == "undecided"
    fewer = [row for row in rows if (row[1], row[3]) != (2, 0.9)]  # a level with one seed, beside one with two
    write_csv(tmp_path / "dissect_similarity.csv", show.FILES["dissect_similarity.csv"], fewer)
    row = findings.judged(tmp_path, "en-de").set_index("finding").loc["higher_diverge"]
    assert row.verdict == "undecided" and row.supported == "2 of 2" and "too few seeds" in row.reason


def test_findings_about_probes_in_closed_form(tmp_path):
    """Of a task that the dense model cannot do, no gain is counted. Unseen word forms count where a task has them."""
    rows, file = [], "dissect_probes.csv"
    accuracy = {("dense", 0.0): (0.8, 0.7), ("slt", 0.9): (0.85, 0.72), ("again", 0.9): (0.82, 0.7)}
    for (technique, level), layers in accuracy.items():
        for layer, value in enumerate(layers, start=1):
            about = ["en-de", 1, technique, level, layer]
            rows.append([*about, "possible", "surface", 0, 99, value, 0.5, 0.5, 0.5, "", ""])
            rows.append([*about, "impossible", "syntax", 0, 99, 0.9 if level else 0.4, 0.5, 0.5, 0.5, "", ""])
            rows.append([*about, "by form", "morphology", 0, 99, 0.99, 0.5, 0.5, 0.5, value, 0.6])
            rows.append([*about, "words alone", "morphology", 0, 99, 0.99, 0.5, 0.5, 0.5, 0.4 + level, 0.5])
    write_csv(tmp_path / file, show.FILES[file], rows)
    effects = findings.effects(tmp_path, "en-de")
    assert {name: effect.tolist() for name, effect in effects.items()} == {
        "early_encode": pytest.approx([5.0]),
        "early_encode_again": pytest.approx([3.0]),
        "early_encode_most": pytest.approx([5.0 - 2.0]),
    }


def test_what_the_contrasts_of_a_seed_share_counts_once():
    """Degrees of freedom of two seeds whose four contrasts differ by one shift, by none in common, or by both."""
    index = pd.MultiIndex.from_product([["slt", "mp"], [0.5, 0.9], [1, 2]], names=["technique", "sparsity", "seed"])

    def freedom(*shifts):
        return findings._freedom(pd.Series([value for shift in shifts for value in (0.0, shift)], index))

    assert freedom(1, 1, 1, 1) == pytest.approx(1)
    assert freedom(1, -1, 1, -1) == pytest.approx(3)  # all of it is within the seeds: 4 - 1
    # sums of squares: of the seeds 4 * .5^2 * 2 = 2 of 4 in all, so 16 / (4 / 1 + 4 / 3)
    assert freedom(2, 0, 2, 0) == pytest.approx(3)
    alone = pd.Series([1.0, 2.0, 3.0], index[[0, 2, 3]])  # one contrast has one seed
    assert findings._freedom(alone) == 1 and findings._freedom(alone[:2]) == 0


def test_the_interval_of_a_probe_is_over_seeds(tmp_path):
    """Two models, two seeds with two splits each: the seeds' means differ by .04 and .02."""
    rows, file = [], "dissect_probes.csv"
    for technique, level, means in (("dense", 0.0, (0.80, 0.84)), ("slt", 0.9, (0.70, 0.72))):
        for seed, mean in enumerate(means, start=1):
            for draw, shift in enumerate((-0.05, 0.05)):
                about = ["en-de", seed, technique, level, "norm", "task", "surface", draw, 99]
                rows.append([*about, mean + shift, 0.5, 0.5, 0.5, "", ""])
    write_csv(tmp_path / file, show.FILES[file], rows)
    table = show.probe_table(tmp_path, "en-de")
    spread = np.sqrt((np.var([0.80, 0.84], ddof=1) + np.var([0.70, 0.72], ddof=1)) / 2)
    expected = round(100 * scipy.stats.t.ppf(0.975, 2) * spread / np.sqrt(2), 1)
    assert table.interval.tolist() == [expected] * 2 and table.accuracy.tolist() == [82.0, 71.0]


def test_retraining_is_taken_off_where_it_was_as_often(tmp_path):
    """MP is trained once, so no dense run that was trained again is its control."""
    rows = []
    for technique, level, layers in (("slt", 0.5, (0.9, 0.7)), ("mp", 0.5, (0.9, 0.8)), ("again", 0.5, (0.9, 0.85))):
        for layer, cka in zip((1, 2), layers, strict=True):
            rows.append(["en-de", 1, technique, level, "encoder", layer, layer, cka, 1, 1, 1, cka / 2])
    write_csv(tmp_path / "dissect_similarity.csv", show.FILES["dissect_similarity.csv"], rows)
    found = findings.effects(tmp_path, "en-de")
    assert set(found["higher_diverge"].index.get_level_values("technique")) == {"slt", "mp"}
    again = found["higher_diverge_again"]
    assert again.index.tolist() == [("slt", 0.5, 1)] and again.iloc[0] == pytest.approx(0.2 - 0.05)
    assert found["neurons_stay_again"].to_dict() == pytest.approx({("slt", 0.5, 1): 100 * (0.4 - 0.4375)})
    values = {"slt": 0.7, "mp": 0.6, "again": 0.8, "noise": 0.4}
    rows = [
        ["en-de", 1, name, 0.0 if name == "noise" else 0.5, "cross", 1, 1, r, *[0] * 7] for name, r in values.items()
    ]
    write_csv(tmp_path / "dissect_attention.csv", show.FILES["dissect_attention.csv"], rows)
    found = findings.effects(tmp_path, "en-de")
    assert found["attention_stays"].to_dict() == pytest.approx({("mp", 0.5, 1): 0.2, ("slt", 0.5, 1): 0.3})
    assert found["attention_stays_again"].to_dict() == pytest.approx({("slt", 0.5, 1): -0.1})


def test_a_rehearsal_probes_mp_and_slt_and_a_study_all(looked, monkeypatch):
    _, study, _, _, sparse, _ = looked
    mixed = [*sparse, *(dataclasses.replace(one, technique="clt") for one in sparse)]
    for rehearsal, expected in ((True, {"slt"}), (False, {"slt", "clt"})):
        monkeypatch.setattr(study, "params", study.params.model_copy(update={"rehearsal": rehearsal}))
        assert {one.technique for one in dissect.chosen(study, mixed, [], [])} == expected


def test_bad_input_gives_one_line(looked):
    _, study, _, _, sparse, _ = looked
    for call, message in (
        (lambda: dissect.levels_of(study, [0.7]), r"levels: 0.7 is not a level of tiny, which has \[0.5, 0.8\]"),
        (lambda: dissect.text(study, 0), "sentences: 0 is not a number of sentences"),
        (lambda: dissect.chosen(study, sparse, ["slt"], [0.9]), "probe_levels: no model of 0.9 is looked into"),
        (lambda: dissect.chosen(study, sparse, ["stl"], []), "probe_techniques 'stl' is none of mp, lt, slt"),
        (lambda: dissect.probe_tasks(study, -5), "probe_sentences: -5 is not a number of sentences"),
        (lambda: dissect.probe_tasks(study, 20), "probe_sentences: 20 sentences give no task enough examples"),
        (lambda: dissect.controls(study, {}, [], [], [0.5]), "tiny en-de: the dense run of seed 1 is not trained yet"),
        (lambda: dissect.text(study, 5), r"sentences: 5 have \d+ word pieces, but 160 are needed; give more"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
