"""Notebook 11's numbers: agreement of masks, attention patterns, and the tables from runs to plots."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure

from slt_lib import masks, techniques
from slt_lib.analysis import overlap, patterns
from slt_lib.base.errors import InputError
from slt_lib.evaluation import scoring
from slt_lib.report import findings
from slt_lib.report import subnetworks as report
from slt_lib.report.data import write_csv
from slt_lib.study import results, subnet_tables, subnetworks
from slt_lib.study.scores import translate_with
from slt_lib.transformer import Attention, Shape, Transformer

# Agreement ------------------------------------------------------------


@pytest.fixture
def random():
    return np.random.default_rng(5)


def test_two_raters_kappa_is_scotts_pi(random):
    one, other = random.random((2, 400)) < [[0.3], [0.6]]
    share = (one.mean() + other.mean()) / 2
    chance = share**2 + (1 - share) ** 2
    assert overlap.fleiss_kappa([one, other]) == pytest.approx(((one == other).mean() - chance) / (1 - chance))


def test_fleiss_published_example():
    """Fleiss (1971) with two categories: ten subjects, fourteen raters, votes for the first category as given."""
    votes = [0, 2, 6, 7, 10, 14, 3, 12, 1, 9]
    raters = [np.array([i < count for count in votes]) for i in range(14)]
    counts = np.stack([votes, 14 - np.array(votes)], axis=1)
    agreement = ((counts**2).sum(1) - 14) / (14 * 13)
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    assert overlap.fleiss_kappa(raters) == pytest.approx((agreement.mean() - chance) / (1 - chance))


def test_equal_masks_agree_and_complements_do_not(random):
    mask = random.permutation(np.arange(100) < 50)
    assert overlap.fleiss_kappa([mask, mask, mask]) == 1
    assert overlap.fleiss_kappa([mask, ~mask]) == -1  # Cochran's Q of these two is 0
    assert np.isnan(overlap.fleiss_kappa([np.ones(3, bool)] * 2))


def test_the_null_is_that_of_permutations(random):
    one, other = (torch.from_numpy(random.permutation(np.arange(60) < count).reshape(6, 10)) for count in (20, 33))
    value, mean, low, high = overlap.jaccards({"w": one}, {"w": other})["w"]
    assert value == pytest.approx(float((one & other).sum() / (one | other).sum()))
    drawn = []
    for _ in range(4000):
        moved = random.permutation(other.numpy().ravel()).reshape(6, 10)
        drawn.append((one.numpy() & moved).sum() / (one.numpy() | moved).sum())
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], abs=0.03)
    assert np.mean(drawn) == pytest.approx(mean, abs=0.01)
    kappa, low, high = overlap.kappa_with_null(one.numpy().ravel(), other.numpy().ravel(), 1, [""] * 60)
    assert low < 0 < high and kappa == overlap.fleiss_kappa([one.numpy().ravel(), other.numpy().ravel()])


def test_the_null_of_kappa_is_that_of_permutations(random):
    """Three masks of two matrices, each permuted within itself, against the closed form."""
    counts = ((20, 30), (33, 5), (25, 12))
    masks = [
        {name: torch.from_numpy(random.permutation(np.arange(n) < c)) for name, n, c in (("a", 60, a), ("b", 40, b))}
        for a, b in counts
    ]
    drawn = [
        overlap.fleiss_kappa([np.concatenate([random.permutation(kept.numpy()) for kept in m.values()]) for m in masks])
        for _ in range(3000)
    ]
    expected = np.mean(drawn), *np.quantile(drawn, [0.025, 0.975])
    assert overlap.kappa_null(masks) == pytest.approx(expected, abs=0.015)
    assert np.isnan(overlap.kappa_null([{"a": torch.ones(3, dtype=torch.bool)}] * 2)).all()


def test_a_null_within_first_masks_is_that_of_draws_from_them(random):
    """Masks of 12, 20 and 25 of 60 entries: the first two are part of one first mask of 40, the third of none."""
    first = random.permutation(np.arange(60) < 40)
    ranges = [first, first, np.ones(60, bool)]

    def draw(count: int, within: np.ndarray) -> np.ndarray:
        kept = np.zeros(60, bool)
        kept[random.choice(np.flatnonzero(within), count, replace=False)] = True
        return kept

    drawn = [[draw(count, within) for count, within in zip((12, 20, 25), ranges, strict=True)] for _ in range(4000)]
    masks, within = ([{"w": torch.from_numpy(mask)} for mask in some] for some in (drawn[0], ranges))
    assert [overlap.range_of(mask, {"w": torch.from_numpy(first)})["w"].sum() for mask in masks] == [40, 40, 60]
    for i, j in ((0, 1), (0, 2)):
        values = [(each[i] & each[j]).sum() / (each[i] | each[j]).sum() for each in drawn]
        _, mean, low, high = overlap.jaccards(masks[i], masks[j], within[i], within[j])["w"]
        assert mean == pytest.approx(np.mean(values), abs=0.01)
        assert [low, high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    values = [overlap.fleiss_kappa(each) for each in drawn]
    assert overlap.kappa_null(masks, within)[0] == pytest.approx(np.mean(values), abs=0.01) and np.mean(values) > 0.02
    # at the first level there is nothing to draw
    assert overlap.jaccards(within[0], within[1], within[0], within[1])["w"] == (1, 1, 1, 1)


def test_a_null_within_groups_keeps_their_numbers():
    """Two groups of four entries that keep three and one: nothing else is permuted than which ones."""
    mask = np.array([1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    kappa, low, high = overlap.kappa_with_null(mask, mask, 1, list("aaaabbbb"))
    assert (kappa, low, high) == (1, 0, 1)  # neither, one or both groups agree: 0, .5 or 1
    assert overlap.kappa_with_null(mask, mask, 1, [""] * 8)[1] < 0
    same = np.array([1, 1, 0, 0], dtype=bool)
    assert overlap.kappa_with_null(same, same, 1, list("aabb")) == (1, 1, 1)


# Patterns ------------------------------------------------------------


def test_heads_with_a_known_look_have_their_pattern(session_study, monkeypatch):
    """Head 1 looks at one relative position, head 2 at the first column, whatever the weights are."""

    def looks(self, x, key, bias):
        rows, columns = x.shape[1], key.shape[2]
        weights = torch.full((len(x), 2, rows, columns), 1e-3)
        for row in range(rows):
            weights[:, 0, row, max(0, min(row - 1, columns - 1))] = 1
        weights[:, 1, :, 0] = 1
        return weights

    model, data = session_study.model(), session_study.data
    model.load_state_dict(Transformer(session_study.shape, seed=1).state_dict())
    monkeypatch.setattr(Attention, "weights", looks)
    counts = np.ones(len(data.vocabulary), dtype=np.int64)
    sides = data.source.lists()[:20], data.target.lists()[:20]
    found = patterns.attended(model, *sides, counts, counts)
    assert not any("weights" in vars(module) for module in model.modules())
    assert patterns.pattern(found["decoder", 1], 0)[0] == "previous"
    name, shares = patterns.pattern(found["encoder", 1], 1)
    assert name == "vertical" and shares["vertical"] == 1 and shares["confidence"] == 1
    assert np.allclose(np.diag(patterns.correlations(found["encoder", 1], found["encoder", 1])), 1)


def looked_at(monkeypatch, shape, looks, sources, targets, counts):
    """What the heads look at if `looks(rows, keys)` gives their weights [heads, rows, keys]."""
    monkeypatch.setattr(
        Attention, "weights", lambda self, x, key, bias: looks(x.shape[1], key.shape[2]).expand(len(x), -1, -1, -1)
    )
    return patterns.attended(Transformer(shape, seed=1), sources, targets, counts, counts)


def test_a_decoder_s_rare_word_is_the_rarest_that_it_sees(monkeypatch):
    """The rarest word comes last; a causal head that always looks at the rarest word so far is a rare-word head."""
    counts = np.array([0, 99, 99, 9, 7, 5, 3, 1])  # the later, the rarer
    found = looked_at(monkeypatch, Shape(8, 1, 8, 8, 2), lambda rows, keys: torch.eye(rows, keys).expand(2, -1, -1),
                      [[3, 4, 1]], [[3, 4, 5, 6, 7, 1]], counts)  # fmt: skip
    [rare] = found["decoder", 1].rare
    assert rare.all()  # a query is the last word that it sees
    [offset] = found["decoder", 1].offset
    assert not offset.any()


def test_heads_are_compared_over_the_keys_that_they_see(monkeypatch, random):
    """Independent heads do not correlate, although both are 0 where a causal mask is, nor does a uniform one."""
    drawn = [torch.from_numpy(random.exponential(size=(2, 40, 40))) for _ in range(2)]
    sides = []
    for weights in drawn:

        def looks(rows, keys, weights=weights):
            seen = weights[:, :rows, :keys].tril() if rows == keys else weights[:, :rows, :keys]
            return (seen / seen.sum(-1, keepdim=True)).float()

        sentence = [*[5] * 39, 1]
        sides.append(looked_at(monkeypatch, Shape(8, 1, 8, 8, 2), looks, [sentence] * 4, [sentence] * 4, np.ones(8)))
    one, other = (side["decoder", 1] for side in sides)
    own, between = patterns.correlations(one, one), patterns.correlations(one, other)
    assert np.diag(own) == pytest.approx([1, 1]) and np.abs(between).max() < 0.15
    one.weights = [part * [[0], [1]] for part in one.weights]
    assert not patterns.correlations(one, other)[0].any()


def test_rare_words_and_everything_else():
    def attended(offset, rare, modal):
        part = patterns.Attended()
        part.largest, part.offset = [np.full((1, 10), 0.5)], [np.array([offset])]
        part.rare, part.modal = [np.array([rare])], [np.array([modal])]
        return part

    mixed, no = [*range(10)], [False] * 10
    assert patterns.pattern(attended([1] * 9 + [5], no, no), 0)[0] == "next"
    assert patterns.pattern(attended([1] * 8 + [5, 5], no, no), 0)[0] == "heterogeneous"
    assert patterns.pattern(attended([3] * 10, no, no), 0)[0] == "positional"
    assert patterns.pattern(attended(mixed, [True] * 7 + [False] * 3, no), 0)[0] == "rare word"
    assert patterns.pattern(attended(mixed, [True] * 7 + [False] * 3, [True] * 10), 0)[0] == "vertical"


# Estimates ------------------------------------------------------------


def test_an_interval_is_students_where_lines_have_no_error(random):
    values = random.normal(20, 2, 4)
    rows = pd.DataFrame({"cell": "a", "bleu": values, "error": 0.0})
    cell = report.estimates(rows, "bleu", ["cell"]).loc["a"]
    expected = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert (cell.low, cell.high) == pytest.approx(expected)


def test_an_interval_is_normal_with_one_seed():
    rows = pd.DataFrame({"cell": ["a", "b"], "bleu": [10.0, 12.0], "error": [0.5, 1.0]})
    cells = report.estimates(rows, "bleu", ["cell"])
    assert (cells.high - cells["mean"]).tolist() == pytest.approx([0.98, 1.96])


def test_the_spread_between_seeds_is_that_of_cells_alike():
    """Scores as pruned differ by ten points between seeds, retrained ones do not: each has its own interval."""
    rows = pd.DataFrame({"cell": list("aabb"), "bleu": [10.0, 20.0, 30.0, 30.2], "error": 0.0})
    cells = report.estimates(rows, "bleu", ["cell"], rows.cell)
    assert cells.deviation.tolist() == pytest.approx([5, 0.1]) and cells.degrees.tolist() == pytest.approx([1, 1])


# From runs to plots ------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(session_study, tmp_path_factory):
    """All tables of the tiny study, both seeds, one random draw."""
    study, folder = session_study, tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_FIGURES", str(folder))
        patch.setattr(
            subnetworks, "dev_bleu", lambda study, weights: float(sum(w.count_nonzero() for w in weights.values()))
        )
        lines = techniques.subnetworks(0.8, draws=1)
        chains = study.follow(
            [
                study.chain(line.recipe, seed, line.levels, line.label, **line.knobs)
                for seed in study.seeds
                for line in lines
            ]
        )
        runs = [next(chain.runs[0] for chain in chains if chain.seed == seed) for seed in study.seeds]
        masked = study.follow(
            [study.chain(recipe, seed) for seed in study.seeds for recipe in (techniques.lt, techniques.slt)]
        )

        def record():
            results.record(study, chains)
            subnet_tables.record_scores(study, chains, 0.8)
            subnet_tables.record_pruning(study, runs)
            subnet_tables.record_heads(study, runs)
            subnet_tables.record_masks(study, masked)
            subnet_tables.record_global(study, runs)
            subnet_tables.record_between_seeds(study, runs)

        record()
        yield folder / study.name, chains, runs, record


def test_recording_again_gives_the_same_bytes(tables):
    folder, _, _, record = tables
    before = {file: (folder / file).read_bytes() for file, _ in report.FILES.values()}
    assert set(before) <= {path.name for path in folder.iterdir()}
    record()
    assert {file: (folder / file).read_bytes() for file in before} == before


def test_without_dense_runs_the_rows_stay(tables, session_study):
    folder = tables[0]
    before = (folder / "subnet_heads.csv").read_bytes()
    with pytest.raises(InputError, match="tiny en-de: the dense run of seed 1 is not trained yet"):
        subnet_tables.record_heads(session_study, [])
    assert (folder / "subnet_heads.csv").read_bytes() == before


def test_masks_of_one_technique_are_shown_without_a_comparison(tables, tmp_path):
    lines = (tables[0] / "subnet_overlap.csv").read_text().splitlines()
    (tmp_path / "subnet_overlap.csv").write_text("\n".join([lines[0], *(row for row in lines if ",levels," in row)]))
    assert report.plot_matrices(tmp_path, "en-de") is None
    assert [name for name, _ in report.all_plots(tmp_path, ["en-de"])] == ["subnet_overlap_en-de"]
    assert len(list(report.shown(tmp_path, "en-de"))) == 3


def test_matched_heads_are_more_alike_than_those_of_one_index(tables):
    found = report.frame(tables[0], "seeds", "en-de").set_index("heads").correlation
    assert found["matched"] >= found["unmatched"] and found["unmatched"] != found["matched"]


def test_scores_are_those_of_the_pruned_weights(tables, session_study):
    folder, chains, runs, _ = tables
    rows = report.frame(folder, "scores", "en-de")
    assert len(rows) == 2 * (2 * 3 * 3 + 1)
    for pruning in ("structured", "unstructured"):
        ticket = subnetworks.pruned_ticket(runs[0].rewind(at=0), runs[0], pruning, "bad", 0, 0.8)
        weights = masks.apply(runs[0].weights("best"), ticket.start().mask)
        split = next(iter(session_study.corpus.tests.values()))
        bleu = scoring.bleu(translate_with(session_study, weights, list(split.source)), list(split.target))
        row = rows.query(f"pruning == '{pruning}' and subnetwork == 'bad' and trained == 'pruned' and seed == 1")
        assert float(row.bleu.iloc[0]) == pytest.approx(bleu, abs=1e-3)
    sizes = rows[rows.pruning != ""].groupby(["pruning", "seed"]).kept.nunique()
    assert (sizes == 1).all()
    kept = {chain.runs[-1].record["kept"] for chain in chains if "=structured" in chain.variant and chain.seed == 1}
    assert len(kept) == 1


def test_a_contrast_is_the_difference_of_two_scores(tables):
    folder = tables[0]
    rows = report.frame(folder, "scores", "en-de").set_index(["seed", "pruning", "subnetwork", "trained"]).bleu
    for row in report.frame(folder, "contrasts", "en-de").itertuples():
        other = (row.seed, "", "dense", "") if row.worse == "dense" else (row.seed, row.pruning, row.worse, row.trained)
        expected = rows[row.seed, row.pruning, row.better, row.trained] - rows[other]
        assert row.difference == pytest.approx(expected, abs=2e-4)


def test_every_head_and_step_has_its_row(tables, session_study):
    folder = tables[0]
    assert len(report.frame(folder, "heads", "en-de")) == 2 * 6
    steps = report.frame(folder, "pruning", "en-de")
    assert (steps.groupby(["kind", "seed"]).dev_bleu.max() > 0).all() and set(steps.kind) == set(report.LOOPS)
    density = report.frame(folder, "density", "en-de")
    whole = density[density["head"].isna()]
    assert (whole.kept - (1 - whole.sparsity)).abs().max() < 1e-2
    spread = report.frame(folder, "global", "en-de").query("head != head").groupby("sparsity").kept.std()
    assert (spread > 0).all()


def test_successive_masks_of_a_chain_are_nested(tables):
    """So they have in common what the higher level keeps of the lower: (1 - higher) / (1 - lower)."""
    rows = report.frame(tables[0], "overlap", "en-de").query("measure == 'levels'")
    expected = {0.6: 0.4 / 0.5, 0.8: 0.2 / 0.4}
    assert set(rows.sparsity) == set(expected) and set(rows.techniques) == {"lt", "slt"}
    assert (rows.value - rows.sparsity.map(expected)).abs().max() < 1e-2 and (rows.value > rows.high).all()


SHOWN = "scores_table plot_scores plot_pruning plot_survivors plot_heads heads_table "
SHOWN += "patterns_table plot_overlap kappa_table plot_matrices plot_global plot_density dead_table seeds_table "
SHOWN += "levels_table survivors_table"


@pytest.mark.parametrize("name", SHOWN.split())
def test_everything_is_shown_from_the_files_alone(name, tables):
    shown = getattr(report, name)(tables[0], "en-de")
    if isinstance(shown, Figure):
        shown.canvas.draw()
        assert shown.axes
    else:
        assert len(shown)


def test_sizes_that_differ_between_seeds_and_the_seeds_of_a_column_are_named(tmp_path):
    file, columns = report.FILES["scores"]
    rows = [["en-de", seed, "structured", "bad", 0, "pruned", seed / 10, 1, 20.0, 1.0, ""] for seed in (1, 2)]
    write_csv(tmp_path / file, columns, [*rows, [*rows[1][:5], "lt", *rows[1][6:]]])
    shown = report.scores_table(tmp_path, "en-de")
    assert "| structured | 10% or 20% | bad |" in shown and "Seeds: as pruned 1, 2; LT 2; SLT none." in shown


def test_a_rehearsal_judges_nothing_and_a_study_does(tables):
    folder = tables[0]
    assert set(findings.judged(folder, "en-de", "subnet").verdict) == {"withheld"}
    about = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(about | {"rehearsal": False}))
    judged = findings.judged(folder, "en-de", "subnet")
    (folder / "study.json").write_text(json.dumps(about))
    assert list(judged.finding) == list(findings.SUBNETWORKS) and not judged.effect.isna().any()
    for row in judged[judged.finding != "cross_last"].itertuples():  # which has two contrasts
        assert row.verdict == ("holds" if row.low > 0 else "fails" if row.high <= 0 else "undecided")


def test_findings_about_heads_in_closed_form(tmp_path):
    """Two seeds, one layer of four heads: cross-attention loses its heads last, and those cost most BLEU."""
    rows = {"heads": [], "pruning": []}
    for seed in (1, 2):
        for step, left in enumerate([(4, 4, 4), (2, 4, 4), (0, 4, 4), (0, 2, 4), (0, 0, 4), (0, 0, 2), (0, 0, 0)]):
            rows["pruning"].append(["en-de", seed, "heads", step, *left, 12, 8, 8, 30.0])
        for kind, lost in (("encoder", (0, 0, 1, 1)), ("decoder", (0, 0, 1, 1)), ("cross", (4, 4, 3, 3))):
            for head, points in enumerate(lost):
                rows["heads"].append(["en-de", seed, kind, 0, head, 1, 30.0, 30.0 - points, 0, 0, 1, "", 0, 0, 0, 0])
    for name, lines in rows.items():
        file, columns = report.FILES[name]
        write_csv(tmp_path / file, columns, lines)
    found = findings.of_subnetworks(tmp_path, "en-de")
    # lost without a head, and gone at the removal of a head of cross-attention: 10 and 12 of 12, of others 2 to 8
    lost = np.repeat([4, 3], 4), np.repeat([0, 1], 8)
    gone = {"cross": (10, 12), "encoder": (2, 4), "decoder": (6, 8)}
    gone = {kind: 100 / 12 * np.repeat(numbers, 4) for kind, numbers in gone.items()}
    expected = {"": lost} | {f"against {kind}": (gone["cross"], gone[kind]) for kind in ("encoder", "decoder")}
    for one in (*found["last_cross"], *found["cross_last"]):
        test = scipy.stats.ttest_ind(*expected.pop(one.what), equal_var=False)
        interval = test.confidence_interval(0.95)
        assert one.bounds() == pytest.approx((interval.low, interval.high)) and one.seeds_known
    assert not expected


def test_findings_are_not_pooled_with_others_of_another_kind(tmp_path):
    """Two seeds: contrasts as pruned differ by 8 BLEU, retrained ones by .2, and heads by many percent."""
    rows = {"contrasts": [], "heads": [], "pruning": []}
    for seed, pruned, retrained in ((1, 10.0, 1.0), (2, 18.0, 1.2)):
        for pruning in ("structured", "unstructured"):
            rows["contrasts"].append(["en-de", seed, pruning, "pruned", "good", "random", pruned, 0])
            rows["contrasts"].append(["en-de", seed, pruning, "lt", "good", "random", retrained, 0])
            rows["contrasts"].append(["en-de", seed, pruning, "lt", "good", "bad", 9 * retrained, 0])  # not judged
        for step, left in enumerate([(2, 2, 2), (1, 2, 2), (0, 1, 2), (0, 0, 0)][:: 3 - 2 * seed]):
            left = left if seed == 1 else tuple(2 - number for number in left)
            rows["pruning"].append(["en-de", seed, "heads", step, *left, 6, 8, 8, 30.0])
    for name, lines in rows.items():
        file, columns = report.FILES[name]
        write_csv(tmp_path / file, columns, lines)
    found = {name: one for name, [one, *_] in findings.of_subnetworks(tmp_path, "en-de").items()}
    for trained, gap in (("pruned", 8), ("lt", 0.2)):
        for pruning in ("structured", "unstructured"):
            one = found[f"{pruning} {trained} good random"]
            # two values that far apart: variance gap^2 / 2, in one contrast of its kind as pruned, in two retrained
            assert (one.error, one.freedom) == pytest.approx((gap / 2, 1 if trained == "pruned" else 2))
            assert not one.seeds_known  # five degrees of freedom are needed, as for claims
    assert not {name for name in found if name.endswith("good bad")} and "cross_last" in found


def test_a_head_is_dead_if_it_has_no_weight_in_any_of_its_matrices(tmp_path):
    rows = []
    for matrix in ("query", "key", "value", "output"):
        name = f"encoder.0.self_attention.{matrix}"
        rows.append(["en-de", 1, 0.9, "slt", name, "", 0.1, 0, 0])
        rows.append(["en-de", 1, 0.9, "slt", name, 0, 0.0, 1.0, ""])  # dead
        alive = matrix == "output"  # three of four are empty, and one has a weight that rounding hides
        rows.append(["en-de", 1, 0.9, "slt", name, 1, 0.0, 0.9844 if alive else 1.0, ""])
    file, columns = report.FILES["density"]
    write_csv(tmp_path / file, columns, rows)
    assert report.dead_table(tmp_path, "en-de").heads.tolist() == [50.0]


def test_a_tenth_random_draw_is_scored_as_itself(session_study, tmp_path, monkeypatch):
    """The subnetwork's name, random10, gives the draw whose mask the dense weights are scored under."""
    monkeypatch.setenv("SLT_FIGURES", str(tmp_path))
    asked, original = [], subnetworks.pruned_ticket
    line = next(line for line in techniques.subnetworks(0.8, draws=10)
                if line.label == ("lt", "subnetwork=unstructured random10"))  # fmt: skip
    chains = session_study.follow([session_study.chain(line.recipe, 1, line.levels, line.label, **line.knobs)])

    def ticket(*arguments):
        asked.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(subnetworks, "pruned_ticket", ticket)
    subnet_tables.record_scores(session_study, chains, 0.8)
    assert asked == [9]
