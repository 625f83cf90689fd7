"""Sparse models: packed arrays and exported folders give back the same weights, the engine the same translations."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import sparse

from slt_lib import masks, memory
from slt_lib.base.devices import threads
from slt_lib.base.errors import InputError
from slt_lib.data.vocabulary import Vocabulary
from slt_lib.evaluation import decoding
from slt_lib.sparse import files, packing
from slt_lib.sparse.engine import DenseMatrix, Engine, choose
from slt_lib.sparse.kernel import LANES, SparseMatrix, attention, largest_and_logsumexp, normalize, rounded_up
from slt_lib.study import export, scores
from slt_lib.techniques import RECIPES
from slt_lib.transformer import EOS, Shape, Transformer, prunable

SHAPE = Shape(vocabulary=120, layers=2, hidden=32, filter=64, heads=4)
LEVELS = [0.1, 0.5, 0.85, 0.9, 0.95, 0.98]


def random_weights(seed=1, shape=SHAPE):
    """Weights with nonzero biases and norms, and an embedding large enough for the model to prefer some words."""
    torch.manual_seed(seed)
    model = Transformer(shape, seed)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for name, weight in weights.items():
        # as after a training: no matrix is uniform, no bias zero
        weight *= 3.0 if name == "embedding" else 1.0
        weight += (0.1 if weight.dim() == 1 else 0.03) * torch.randn_like(weight)
    return weights


def pruned(sparsity, seed=1, shape=SHAPE):
    weights = random_weights(seed, shape)
    mask = masks.magnitude_mask(prunable(weights), sparsity)
    return masks.apply(weights, mask), mask


def sources(count, shape=SHAPE, longest=12):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[*torch.randint(3, shape.vocabulary, (n,), generator=generator).tolist(), EOS] for n in lengths]


def a_vocabulary():
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Vocabulary.build([f"{a}{b}" for a in letters for b in letters], SHAPE.vocabulary).text


# Packing ------------------------------------------------------------


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 700)), elements=st.booleans()))
def test_each_form_gives_back_the_mask(kept):
    for form, pack in (("bits", packing._bits), ("gaps", packing._gaps)):
        assert np.array_equal(packing.unpack(form, pack(kept), kept.size), kept.ravel())
    assert packing.pack(kept)[1].nbytes == min(packing._bits(kept).nbytes, packing._gaps(kept).nbytes)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 510, 511, 3000])
def test_gaps_of_every_length(gap):
    kept = np.zeros((2, 7000), bool)
    kept[0, [gap, 2 * gap + 1]] = True
    assert np.array_equal(packing.unpack("gaps", packing._gaps(kept), kept.size), kept.ravel())


@pytest.mark.parametrize(("form", "places"), [("bits", [0, 0, 0]), ("gaps", [200, 200])])
def test_arrays_of_another_shape_are_refused(form, places):
    with pytest.raises(ValueError, match=r"expected|beyond"):
        packing.unpack(form, np.array(places, np.uint8), 8)


# Folders ------------------------------------------------------------


@pytest.mark.parametrize("sparsity", LEVELS)
def test_a_folder_gives_back_the_same_weights(tmp_path, sparsity):
    weights, mask = pruned(sparsity)
    files.save(tmp_path, SHAPE, weights, mask, a_vocabulary(), "card", {"seed": 1})
    found = files.load(tmp_path)
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], weight) for name, weight in weights.items())
    assert all(torch.equal(found.mask[name], kept) for name, kept in mask.items())
    assert (found.shape, found.config["seed"], len(found.vocabulary)) == (SHAPE, 1, SHAPE.vocabulary)


def test_a_kept_zero_stays_kept(tmp_path):
    weights, mask = pruned(0.9)
    name = "embedding"
    row, column = mask[name].nonzero()[0]
    weights[name][row, column] = 0.0
    files.save(tmp_path, SHAPE, weights, mask, a_vocabulary(), "card", {})
    assert files.load(tmp_path).mask[name][row, column]


def test_a_structured_mask_keeps_its_biases(tmp_path):
    weights, mask = pruned(0.5)
    bias = "encoder.0.feed_forward.inner_bias"
    mask[bias] = torch.arange(64) % 3 > 0
    weights = masks.apply(weights, mask)
    files.save(tmp_path, SHAPE, weights, mask, a_vocabulary(), "card", {})
    found = files.load(tmp_path)
    assert torch.equal(found.mask[bias], mask[bias])
    assert all(torch.equal(found.weights[name], weight) for name, weight in weights.items())


def test_a_dense_model_and_bf16(tmp_path):
    weights = random_weights()
    files.save(tmp_path, SHAPE, weights, None, a_vocabulary(), "card", {}, dtype="bf16")
    found = files.load(tmp_path)
    assert found.mask == {}
    for name, weight in weights.items():
        expected = weight.bfloat16().float() if weight.dim() == 2 else weight
        assert torch.equal(found.weights[name], expected)


@pytest.mark.parametrize("sparsity", LEVELS[1:])
def test_a_file_is_at_most_the_papers_column(tmp_path, sparsity):
    # At 10% a zlib-compressed file of trained weights is 4% smaller: exponents repeat, and plain values keep them all.
    shape = Shape(vocabulary=1000, layers=2, hidden=96, filter=256, heads=4)
    weights, mask = pruned(sparsity, shape=shape)
    matrices = prunable(weights)
    files.save(tmp_path, shape, weights, mask, "{}", "card", {})
    others = sum(4 * weight.numel() for name, weight in weights.items() if name not in matrices)
    size = (tmp_path / files.ARRAYS).stat().st_size
    assert size - others <= memory.compressed_csc_bytes(matrices)


@pytest.mark.parametrize(("sparsity", "mib"), [(0.1, 226), (0.5, 137), (0.9, 31), (0.98, 7)])
def test_the_papers_model_is_at_most_the_published_size(sparsity, mib):
    with torch.device("meta"):
        matrices = prunable(dict(Transformer(Shape(vocabulary=33708)).named_parameters()))
    random, size = np.random.default_rng(0), 0
    for matrix in matrices.values():
        kept = random.random(tuple(matrix.shape), dtype=np.float32) >= sparsity
        size += packing.pack(kept)[1].nbytes + 4 * int(kept.sum())
    assert size / 2**20 < mib + 0.5  # the paper prints whole MiB


def damaged(folder, change):
    config = json.loads((folder / files.CONFIG).read_text())
    change(config)
    (folder / files.CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / files.CONFIG).unlink(), "config.json: not found; name a folder"),
        (lambda folder: (folder / files.CONFIG).write_text("[]"), "config.json: not the configuration"),
        (lambda folder: (folder / files.ARRAYS).unlink(), "model.safetensors: No such file"),
        (lambda folder: (folder / files.ARRAYS).write_bytes(b"x"), "model.safetensors: damaged"),
        (lambda folder: (folder / files.TOKENIZER).write_text("{}"), "tokenizer.json: damaged"),
        (lambda folder: damaged(folder, lambda c: c.update(version=2)), "format slt-sparse 2, this code reads"),
        (lambda folder: damaged(folder, lambda c: c["sha256"].pop(files.ARRAYS)), "incomplete"),
        (lambda folder: damaged(folder, lambda c: c["shape"].update(hidden=64)), "model.safetensors: .* is .*, not"),
        (
            lambda folder: damaged(folder, lambda c: c["matrices"]["embedding"].update(shape=[9, 9])),
            "does not describe",
        ),
        (lambda folder: damaged(folder, lambda c: c["matrices"].pop("embedding")), "model.safetensors: embedding"),
        (lambda folder: damaged(folder, lambda c: c.update(matrices=[])), "does not describe"),
        (lambda folder: damaged(folder, lambda c: c["matrices"]["embedding"].update(shape=[])), "does not describe"),
    ],
)
def test_damage_is_one_line(tmp_path, change, says):
    weights, mask = pruned(0.9)
    files.save(tmp_path, SHAPE, weights, mask, a_vocabulary(), "card", {})
    change(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        files.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


# Kernels ------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 4, 21, 64, 149])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_the_sparse_product_is_scipys(density, columns):
    torch.manual_seed(0)
    matrix = torch.randn(37, 50) * (torch.rand(37, 50) < density)
    bias, x = torch.randn(37), torch.randn(50, columns)
    expected = sparse.csr_matrix(matrix.double().numpy()) @ x.double().numpy() + bias[:, None].numpy()
    assert np.abs(SparseMatrix(matrix, bias)(x).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("columns", [1, 5, 16, 85, 256])
def test_largest_and_logsumexp(columns):
    torch.manual_seed(0)
    x = torch.randn(60, columns) * torch.tensor([0.1, 1.0, 30.0]).repeat_interleave(20)[:, None]
    x[7] = -1e30
    x[40:] = x[40:].round(decimals=-1)  # ties, of which the lower row is first
    values, places, total = largest_and_logsumexp(x, 8)
    expected, rows = x.sort(dim=0, descending=True, stable=True)
    assert torch.equal(values, expected[:8].t()) and torch.equal(places, rows[:8].t())
    torch.testing.assert_close(total.double(), x.double().logsumexp(0), rtol=1e-6, atol=1e-6)
    assert largest_and_logsumexp(x[:3], 8)[0].shape == (columns, 3)
    x[11, 0] = torch.nan
    assert largest_and_logsumexp(x, 8)[2].isnan().tolist() == [True] + [False] * (columns - 1)


@pytest.mark.parametrize("columns", [1, 5, 128, 149])
def test_normalize_is_torchs_layer_norm(columns):
    torch.manual_seed(0)
    x = 3 * torch.randn(columns, 48) + 20
    x[0] = 7.0  # without variance
    expected = F.layer_norm(x.double(), (48,), eps=1e-6).t()
    assert (normalize(x.t()) - expected).abs().max() < 2e-5  # of a copy by rows, as of a part of an array
    assert torch.equal(normalize(F.pad(x.t(), (0, 3))[:, :columns]), normalize(x.t()))


# The engine ------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.98])
def test_the_engine_translates_as_the_model_does(sparsity, beam):
    weights = pruned(sparsity)[0]
    model = Transformer(SHAPE)
    model.load_state_dict(weights)
    texts = sources(60)
    expected = decoding.translate(model, texts, beam, extra=10)
    for dense in (True, False):
        assert (
            decoding.translate(Engine(SHAPE, weights, DenseMatrix if dense else choose), texts, beam, extra=10)
            == expected
        )
    assert len({tuple(answer) for answer in expected}) > 20 or sparsity > 0.9


def test_several_processes_translate_as_one():
    engine, found = Engine(SHAPE, pruned(0.9)[0]), []
    for count in (2, 1):
        with threads(count):
            found.append(decoding.translate(engine, sources(60), 4, extra=5, batch_sentences=8))
            assert torch.get_num_threads() == count
    assert found[0] == found[1]


def test_an_error_in_another_process_is_raised_here():
    weights = dict(pruned(0.9)[0])
    weights["decoder_norm.bias"] = torch.full_like(weights["decoder_norm.bias"], torch.nan)
    with threads(2), pytest.raises(FloatingPointError, match="diverged"):
        decoding.translate(Engine(SHAPE, weights), sources(60), 4, batch_sentences=8)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("queries", [1, 4, 7])
@pytest.mark.parametrize("size", [8, 16, 24])
def test_attention_is_softmax_and_hidden_slots_weigh_nothing(size, queries):
    """Against torch. A hidden slot has values of 1e38: a weight of exp(-87), the smallest normal number, would show."""
    heads, sentences, slots, used = 2, 3, 32, 20
    generator = torch.Generator().manual_seed(1)
    q, new = (torch.randn(*n, heads, size, sentences, queries, generator=generator) for n in ((), (2,)))
    keys = torch.randn(sentences, heads, size, slots, generator=generator)
    values = torch.randn(sentences, heads, slots, rounded_up(size), generator=generator)
    values[:, :, 5] = 1e38
    bias = torch.zeros(sentences, queries, slots)
    bias[..., 5] = bias[..., used:] = -torch.inf
    rows = torch.arange(sentences, dtype=torch.int32)
    stored = keys.unflatten(-1, (-1, LANES)).transpose(2, 3).contiguous()
    found = attention(q, rows, (stored, values), bias, used, new)

    k, v = keys.clone(), values[..., :size].clone()
    k[..., used - queries : used] = new[0].permute(2, 0, 1, 3)  # [sentences, heads, size, queries]
    v[:, :, used - queries : used] = new[1].permute(2, 0, 3, 1)
    v[:, :, 5] = 0
    scores = torch.einsum("hdbq,bhdk->bhqk", q, k) + bias[:, None]
    wanted = torch.einsum("bhqk,bhkd->hdbq", scores.softmax(-1), v)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_logits_are_the_models():
    weights = pruned(0.5)[0]
    model = Transformer(SHAPE)
    model.load_state_dict(weights)
    source = torch.tensor([[5, 9, 1], [7, 1, 0]])
    engine, logits = Engine(SHAPE, weights), []
    with torch.inference_mode():
        for each in (model, engine):
            cache = each.start(each.encode(source), source)
            each.step(torch.tensor([0, 0]), 0, cache)
            logits.append(each.step(torch.tensor([4, 8]), 1, cache))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_heads_and_units_that_add_nothing_are_left_out():
    weights = pruned(0.5)[0]
    for part in ("encoder.0.self_attention", "decoder.1.self_attention", "decoder.0.cross_attention"):
        weights[f"{part}.value"][8:16] = 0  # the second head
    weights["decoder.1.cross_attention.output"][:] = 0  # all heads
    weights["encoder.1.feed_forward.inner"][:5] = 0
    weights["encoder.1.feed_forward.outer"][:, 60:] = 0
    model, engine = Transformer(SHAPE), Engine(SHAPE, weights)
    model.load_state_dict(weights)
    assert [layer.cross_attention.heads for layer in engine.decoder] == [3, 0]
    assert len(engine.encoder[1].inner.matrix) == 64 - 5 - 4
    assert decoding.translate(engine, sources(30), 4, extra=5) == decoding.translate(model, sources(30), 4, extra=5)


def test_a_diverged_model_is_refused():
    weights = random_weights()
    weights["decoder_norm.weight"][0] = torch.nan
    for beam in (1, 4):
        with pytest.raises(FloatingPointError, match="diverged"):
            decoding.translate(Engine(SHAPE, weights), sources(3), beam)


# Export ------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(session_study):
    """technique -> its run at 80% sparsity, and the dense run, of the tiny study."""
    names = ["lt", "slt", "clt", "slt-mp"]
    chains = session_study.follow([session_study.chain(RECIPES[name], 1) for name in names])
    return {"dense": chains[0].runs[0]} | {name: chain.runs[-1] for name, chain in zip(names, chains, strict=True)}


@pytest.mark.parametrize("technique", ["dense", "slt", "slt-mp"])
def test_an_exported_model_is_the_run(tmp_path, runs, technique):
    run = runs[technique]
    said = export.export(run, tmp_path / "model", technique)
    found = files.load(tmp_path / "model")
    assert all(torch.equal(found.weights[name], weight) for name, weight in run.weights("best").items())
    sentences = list(run.study.corpus.tests["test"].source)
    assert found.translate(sentences) == scores.translate(run, sentences)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{scores.scores(run)['test']['bleu']:.1f}" in card
    assert run.id in card
    assert "dense" in said
    with pytest.raises(InputError, match="not an empty folder; name another one"):
        export.export(run, tmp_path / "model", technique)


@pytest.mark.parametrize("technique", ["lt", "slt", "clt", "slt-mp"])
def test_an_exported_ticket_starts_as_the_run_did(tmp_path, runs, technique):
    run, study = runs[technique], runs[technique].study
    export.export_ticket(run, tmp_path / "ticket", technique)
    ticket = study.ticket_from(tmp_path / "ticket")
    start, expected = ticket.start(), run.ticket.start()
    assert (files.load(tmp_path / "ticket").weights is None) == (technique == "lt")
    assert all(torch.equal(start.weights[name], weight) for name, weight in expected.weights.items())
    assert all(torch.equal(start.mask[name], kept) for name, kept in expected.mask.items())
    assert (ticket.sparsity, ticket.schedule, ticket.trained_with) == (
        run.sparsity,
        run.ticket.schedule,
        "slt" if technique == "clt" else run.ticket.trained_with,
    )


def test_an_exported_ticket_without_heads_is_known_as_such(tmp_path, runs):
    study = runs["dense"].study
    ticket = (
        study.ticket(1)
        .prune_heads(heads=["encoder.0.self_attention.1"])
        .prune_feed_forward(units={"decoder.0.feed_forward": [0, 3]})
    )
    [run] = study.train([ticket])
    export.export_ticket(run, tmp_path / "ticket", "lt")
    found = study.ticket_from(tmp_path / "ticket")
    assert found.pruning == {"parts"}
    assert all(torch.equal(found.start().mask[name], kept) for name, kept in run.mask.items())
    with pytest.raises(InputError, match="by whole heads or units"):
        found.prune_randomly(0.9)


def test_a_ticket_is_trained_in_another_seed(tmp_path, runs):
    study = runs["lt"].study
    export.export_ticket(runs["lt"], tmp_path / "a", "lt")
    export.export_ticket(runs["lt"], tmp_path / "b", "lt")
    tickets = [study.ticket_from(tmp_path / "a", seed=5), study.ticket_from(tmp_path / "b", seed=5)]
    assert tickets[0] == tickets[1]  # the place of a folder is no part of its identity
    assert tickets[0].train_id != study.ticket_from(tmp_path / "a").train_id
    assert torch.equal(tickets[0].start().weights["embedding"], runs["lt"].ticket.start().weights["embedding"])
    [run] = study.train(tickets[:1])
    assert all(not run.weights()[name][~kept].any() for name, kept in runs["lt"].mask.items())


def test_folders_that_are_no_ticket_of_this_study(tmp_path, runs, make_study):
    study = runs["slt"].study
    export.export(runs["slt"], tmp_path / "model", "slt")
    export.export_ticket(runs["slt"], tmp_path / "ticket", "slt")
    with pytest.raises(InputError, match="holds no ticket"):
        study.ticket_from(tmp_path / "model")
    with pytest.raises(InputError, match="a ticket is not trained"):
        files.load(tmp_path / "ticket").translate(["a"])
    with pytest.raises(InputError, match="starts without a mask"):
        export.export_ticket(runs["dense"], tmp_path / "dense", "dense")
    with pytest.raises(InputError, match="use a study of the same sizes"):
        make_study({"training": {"model": {"filter": 48}}}).ticket_from(tmp_path / "ticket")
    with pytest.raises(InputError, match="vocabulary is not that of"):
        make_study({"corpus": {"seed": 2, "name": "grammar", "train": 200, "dev": 6, "test": 4}}).ticket_from(
            tmp_path / "ticket"
        )


def test_ctranslate2_translates_the_same(tmp_path, runs):
    ctranslate2 = pytest.importorskip("ctranslate2")
    run = runs["slt"]
    export.export(run, tmp_path / "served", "slt", format="ctranslate2")
    vocabulary, sentences = run.study.vocabulary, list(run.study.corpus.dev.source)
    ids = vocabulary.encode(sentences).lists()
    tokens = [[vocabulary.tokenizer.id_to_token(i) for i in sentence] for sentence in ids]
    served = ctranslate2.Translator(str(tmp_path / "served"), compute_type="float32", intra_threads=1)
    found = served.translate_batch(tokens, beam_size=1, max_decoding_length=20)
    engine = Engine(run.study.shape, run.weights("best"))
    expected = [answer[:20] for answer in decoding.translate(engine, ids, beam=1, extra=20)]
    assert [[vocabulary.tokenizer.token_to_id(token) for token in each.hypotheses[0]] for each in found] == expected
