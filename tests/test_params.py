"""Study files: an error is one line that names file, key and remedy (more in tests/test_bad_input.py)."""

import copy
from pathlib import Path

import pytest
import yaml

from slt_lib.base import settings as params
from slt_lib.base.errors import InputError

SHIPPED = sorted((Path(__file__).parents[1] / "params").glob("*.yaml"))


@pytest.fixture
def written(study_file, monkeypatch):
    """A function that writes the tiny study with changes and returns the error of reading it."""

    def line(changes) -> str:
        path = Path(study_file(changes))
        monkeypatch.chdir(path.parent)
        with pytest.raises(InputError) as caught:
            params.load(str(path))
        message = str(caught.value)
        assert "\n" not in message and message.startswith("tiny.yaml: ")
        return message.removeprefix("tiny.yaml: ")

    return line


def test_errors_of_unknown_corpora_and_techniques_name_the_known_ones(written):
    line = written({"corpus": {"name": "wmt"}})
    assert line.startswith("corpus.name: ") and all(name in line for name in ("'wmt'", "grammar", "multi30k", "files"))
    line = written({"pairs": {"en-de": ["prune"]}})
    assert line.startswith("pairs.en-de.0: ") and "'slt-mp'" in line and "'prune'" in line


def test_a_corpus_without_a_name(tiny):
    raw = copy.deepcopy(tiny)
    del raw["corpus"]["name"]
    with pytest.raises(InputError, match=r"^here: key 'corpus\.name' is missing$"):
        params.parse(raw, "here")


@pytest.mark.parametrize("key", ["files", "grammar", "multi30k"])
def test_unknown_key_named_like_a_corpus(written, key):
    assert written({key: 3}).startswith(f"unknown key '{key}'")


@pytest.mark.parametrize(
    "changes", [{"training": {"peak_lr": {"adafactor": float("inf")}}}, {"decoding": {"alpha": float("inf")}}]
)
def test_numbers_are_finite(written, changes):
    assert "finite" in written(changes)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"levels: [0.5", "not YAML: "),
        (b"a: b: c", "not YAML: "),
        (b"x: !!python/object/apply:os.getcwd []", "not YAML: "),  # and nothing is executed
        (b"seeds: [1]\xff", "not UTF-8 (byte 10); save it as UTF-8"),
        (b"", "a study file is a mapping of keys to values; see params/quick.yaml"),
        (b"- pairs", "a study file is a mapping of keys to values; see params/quick.yaml"),
    ],
)
def test_invalid_study_files(tmp_path, monkeypatch, content, line):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        params.load("bad.yaml")
    assert str(caught.value).startswith(f"bad.yaml: {line}") and "\n" not in str(caught.value)


BASE = "base: &base {a: 1, b: 2}\n"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (BASE + "one: {<<: *base}", {"a": 1, "b": 2}),
        (BASE + "one: {<<: *base, b: 3}", {"a": 1, "b": 3}),
        (BASE + "one: {b: 3, <<: *base}", {"a": 1, "b": 3}),
        (BASE + "one: {<<: [*base, {a: 4, c: 5}]}", {"a": 1, "b": 2, "c": 5}),  # the first of two merged values wins
        (BASE + "in: {deep: &over {<<: *base, b: 3}}\none: {<<: *over, a: 9}", {"a": 9, "b": 3}),
        (BASE + "one: *base", {"a": 1, "b": 2}),
    ],
)
def test_merge_keys_and_anchors(text, read):
    assert yaml.load(text, params._Loader)["one"] == read


def test_a_study_file_with_a_merge_key(study_file, tmp_path):
    plain = Path(study_file())
    merged = tmp_path / "merged.yaml"
    text = plain.read_text().replace("extra: 2\n", "<<: {beam: 9, extra: 2}\n", 1)
    assert "<<" in text
    merged.write_text(text)
    assert params.load(str(merged)) == params.load(str(plain))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("base: &base {a: 1, a: 2}\none: {<<: *base}", "a"),
        (BASE + "one: {<<: *base, b: 3, b: 3}", "b"),
        (BASE + "one: {<<: *base, <<: {c: 1}}", "<<"),
        ("seeds: [1]\nseeds: [2]", "seeds"),
    ],
)
def test_duplicate_keys(tmp_path, monkeypatch, text, key):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"^bad\.yaml: not YAML: key '{key}' is there twice in .* line \d+"):
        params.load("bad.yaml")


@pytest.mark.parametrize("text", ["a: {<<: 3}", "a: {<<: [3]}", "a: &a {? *a : 1}", "a: {[1, 2]: 3}", "a: {{b: 1}: 3}"])
def test_invalid_merges_and_keys(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^bad\.yaml: not YAML: .* line 1"):
        params.load("bad.yaml")


@pytest.mark.parametrize("name", ["nosuch", "../params/one", "", "params/one"])
def test_a_missing_study(tmp_path, monkeypatch, name):
    (tmp_path / "params").mkdir()
    for known in ("one", "two"):
        (tmp_path / "params" / f"{known}.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        params.load(name)
    assert str(caught.value).startswith(f"study {name!r}: there is no params/")
    assert str(caught.value).endswith("; known studies: one, two")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_load(path):
    study = params.load(str(path))
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert study.levels == raw["levels"] and study.training.steps == raw["training"]["steps"]
    for field in ("adafactor", "adam"):  # every study sets both
        assert field in raw["training"]["peak_lr"]


def test_defaults_are_the_papers(tiny):
    training = params.parse(tiny, "tiny").training
    sizes = training.model
    assert (sizes.residual_dropout, sizes.attention_dropout, sizes.relu_dropout) == (0.1, 0.1, 0.1)
    assert (training.optimizer, training.label_smoothing, training.precision) == ("adafactor", 0.1, "fp32")
    assert (training.pruned, training.thresholds, training.order) == ("zeroed", "exact", "fresh")
    plain = {key: params.Training.model_fields[key].default for key in ("checkpoint", "warmup")}
    assert plain == {"checkpoint": 0.05, "warmup": 0.02}
    assert params.Gradual() == params.Gradual(every=0.02, until=0.8)
    assert params.Params.model_fields["keep"].default == [0.05]
    assert params.Decoding().model_dump() == {"beam": 4, "alpha": 0.6, "extra": 100}


def test_parameters_are_immutable(tiny):
    study = params.parse(tiny, "tiny")
    with pytest.raises(ValueError, match="frozen"):
        study.vocabulary = 3
    with pytest.raises(ValueError, match="frozen"):
        study.training.steps = 3
