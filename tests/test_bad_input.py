"""Bad input: one table of mistakes that a person could really make, and the one line that each is answered with.

A case on the command line ends with status 2 and says nothing on standard output; one in a notebook raises InputError.
Either way the line is exact, and nothing is left behind but locks and a vocabulary, which the next command uses again.
`<id>` stands for a hash. Study files and text are the tiny study's, changed.
"""

import gzip
import hashlib
import re
import socket
from pathlib import Path

import pytest
import yaml
from conftest import TINY, changed

from slt_lib import techniques
from slt_lib.__main__ import main
from slt_lib.base.errors import InputError
from slt_lib.base.store import digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.study import Study


class Raw(bytes):
    """A whole study file."""


TEXT = {
    "en": "".join(f"the man sees dog {i}\n" for i in range(40)).encode(),
    "de": "".join(f"der Mann sieht Hund {i}\n" for i in range(40)).encode(),
}
MAPPING = "tiny.yaml: a study file is a mapping of keys to values; see params/quick.yaml"

# Study file -> line; the line of a mistake in a key follows the file's name.
FILES = {
    "key misspelt": ({"levls": [0.5]}, "unknown key 'levls'; did you mean 'levels'?"),
    "key in the singular": ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'?"),
    "key of a section misspelt": (
        {"training": {"warm_up": 0.1}},
        "training: unknown key 'warm_up'; did you mean 'warmup'?",
    ),
    "key two deep misspelt": (
        {"training": {"model": {"hiden": 16}}},
        "training.model: unknown key 'hiden'; did you mean 'hidden'?",
    ),
    "key of nothing": ({"decoding": {"zzz": 1}}, "decoding: unknown key 'zzz'; known keys here: beam, alpha, extra"),
    "key of another corpus": (
        {"corpus": {"name": "multi30k", "train": 9}},
        "corpus: unknown key 'train'; known keys here: name",
    ),
    "key missing": ({"training": None}, "key 'training' is missing"),
    "key of a section missing": ({"training": {"model": {"layers": None}}}, "key 'training.model.layers' is missing"),
    "corpus without its folder": ({"corpus": {"name": "files"}}, "key 'corpus.folder' is missing"),
    "percent": ({"levels": [50]}, "levels: 50.0 is not a sparsity between 0 and 1 (0.9 means 90%)"),
    "a key misspelt": (
        {"levels": None, "level": [0.5]},
        "unknown key 'level'; did you mean 'levels'?",
    ),
    "a comparison misspelt": (
        {"ablations": ["sings"]},
        "ablations: 'sings' is none of true, false or a list of signs, frankle, rewind, source, one-shot, stepwise, "
        "switch, optimizer, average, final, controls, again, scope, criterion, subnetworks, stability",
    ),
    "a corpus misspelt": (
        {"corpus": {"name": "gramar"}},
        "corpus.name: 'gramar' is none of 'grammar', 'multi30k', 'files', 'wmt14'",
    ),
    "percent sign": ({"levels": ["50%"]}, "levels.0: Input should be a valid number, not '50%'"),
    "one level": ({"levels": 0.5}, "levels: Input should be a valid list, not 0.5"),
    "levels that fall": ({"levels": [0.9, 0.5]}, "levels [0.9, 0.5] must rise: a pruned weight does not come back"),
    "a level twice": ({"levels": [0.5, 0.5]}, "levels [0.5, 0.5] must rise: a pruned weight does not come back"),
    "not a number": ({"levels": [float("nan")]}, "levels.0: Input should be a finite number, not nan"),
    "parts that are not equal": ({"accumulate": 3}, "training.batch.rows (8) must be a multiple of accumulate (3)"),
    "no seed": ({"seeds": []}, "seeds: List should have at least 1 item after validation, not 0, not []"),
    "a seed twice": ({"seeds": [3, 3]}, "seeds [3, 3] must differ from each other"),
    "a seed below 0": ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0, not -1"),
    "a yes for a seed": ({"seeds": [True]}, "seeds.0: Input should be a valid integer, not True"),
    "a word for a number": (
        {"training": {"steps": "many"}},
        "training.steps: Input should be a valid integer, not 'many'",
    ),
    "half a step": ({"training": {"steps": 12.5}}, "training.steps: Input should be a valid integer, not 12.5"),
    "two mistakes": (
        {"training": {"steps": 0, "warmup": 7}},
        "training.steps: Input should be greater than or equal to 2, not 0 (and 1 more)",
    ),
    "1e-4, which YAML reads as text": (
        {"training": {"peak_lr": {"adafactor": "1e-4"}}},
        "training.peak_lr.adafactor: Input should be a valid number, not '1e-4'; write 1.0e-4, not 1e-4",
    ),
    "yes in quotes": ({"rehearsal": "yes"}, "rehearsal: Input should be a valid boolean, not 'yes'"),
    "heads that do not divide": (
        {"training": {"model": {"heads": 3}}},
        "training.model: hidden (16) must be a multiple of heads (3)",
    ),
    "an odd length": (
        {"training": {"batch": {"length": 47}}},
        "training.batch.length: Input should be a multiple of 8, not 47",
    ),
    "another optimizer": (
        {"training": {"optimizer": "sgd"}},
        "training.optimizer: Input should be 'adafactor' or 'adam', not 'sgd'",
    ),
    "a rewind point after the end": ({"keep": [2.0]}, "keep.0: Input should be less than or equal to 1, not 2.0"),
    "a seed of the grammar below 0": (
        {"corpus": {"name": "grammar", "train": 20, "dev": 1, "test": 1, "seed": -1}},
        "corpus.seed: Input should be greater than or equal to 0, not -1",
    ),
    "a value of pages": (
        {"seeds": "1 " * 5000},
        "seeds: Input should be a valid list, not '1 1 1 1 1 1 ... 1 1 1 1 1 1 '",
    ),
    "a key twice": (
        Raw(b"seeds: [1]\nseeds: [2]\n"),
        "not YAML: key 'seeds' is there twice in \"<unicode string>\", line 1, column 1: seeds: [1] ^",
    ),
    "a tab": (
        Raw(b"a:\n\tb: 1"),
        "not YAML: while scanning for the next token found character '\\t' that cannot start any token in "
        '"<unicode string>", line 2, column 1: b: 1 ^',
    ),
    "a date that can't be": (Raw(b"seeds: 2024-13-01"), "not YAML: month must be in 1..12"),
    "brackets without end": (Raw(b"[" * 1000), "not YAML: nested too deeply"),
    "saved by an old editor": (Raw("# Größe\n".encode("latin-1")), "not UTF-8 (byte 4); save it as UTF-8"),
    "saved as UTF-16": (Raw("seeds: [1]".encode("utf-16")), "not UTF-8 (byte 0); save it as UTF-8"),
    "empty": (Raw(b""), MAPPING),
    "a list": (Raw(b"- en-de\n"), MAPPING),
    "a grammar without end": (
        {"corpus": {"name": "grammar", "train": 2_000_000, "dev": 1, "test": 1}},
        "corpus grammar: 2,000,002 sentences asked for; it makes 1,000,000 at most, ask for fewer",
    ),
    "a pair that the corpus lacks": (
        {"pairs": {"en-it": ["slt"], "en-de": None}},
        "pairs: corpus grammar: no language pair 'en-it'; take one of en-de, en-fr, de-en, de-fr, fr-en, fr-de",
    ),
    "a vocabulary beyond the text": (
        {"vocabulary": 90_000},
        "vocabulary: 90000 pieces were asked for, but this text gives 1859; set it to 1859",
    ),
    "a vocabulary below the alphabet": (
        {"vocabulary": 10},
        "vocabulary: 10 pieces were asked for, but this text gives 62; set it to 62",
    ),
    "rows too short for any sentence": (
        {"training": {"batch": {"length": 8}}},
        "batch: no training pair fits into length 8; raise batch.length",
    ),
}
WHOLE_LINES = ("corpus grammar:", "batch:", "tiny.yaml:")

# One's own text: file -> content, or None for no such file -> line.
OWN = {
    "no folder": ({"folder": "nowhere"}, "nowhere: there is no such folder; name the one that holds train.en"),
    "a file for a folder": (
        {"folder": "text/dev.en"},
        "text/dev.en: there is no such folder; name the one that holds train.en",
    ),
    "a test set that is not there": (
        {"tests": ["test", "news"]},
        "text/news.en: there is no such file, nor news.en.gz; put it there, one sentence per line",
    ),
    "a side missing": (
        {"train.de": None},
        "text/train.de: there is no such file, nor train.de.gz; put it there, one sentence per line",
    ),
    "an empty side": ({"train.de": b""}, "text/train.de: the file is empty; give it one sentence per line"),
    "a line too few": (
        {"dev.de": TEXT["de"].partition(b"\n")[2]},
        "text/dev.en: 40 lines, but text/dev.de has 39; line i of one must translate line i of the other",
    ),
    "an empty line in a test": (
        {"test.de": b"\n" + TEXT["de"].partition(b"\n")[2]},
        "text/test.de: line 1 is empty; test needs a sentence on every line of both sides",
    ),
    "line ends of an old Mac": (
        {"train.de": TEXT["de"].replace(b"\n", b"\r")},
        "text/train.en: 40 lines, but text/train.de has 1; line i of one must translate line i of the other",
    ),
    "Latin-1": (
        {"train.de": TEXT["de"].replace(b"Hund 7", b"H\xfcndin")},
        "text/train.de: line 8 is not UTF-8; save the file as UTF-8",
    ),
    "packed without .gz": (
        {"train.de": gzip.compress(TEXT["de"], mtime=0)},
        "text/train.de: line 1 is not UTF-8; save the file as UTF-8",
    ),
    ".gz without packing": (
        {"train.de": None, "train.de.gz": TEXT["de"]},
        "text/train.de.gz: can't be read (Not a gzipped file (b'de')); check the file, or copy it again",
    ),
    "half a .gz": (
        {"train.de": None, "train.de.gz": gzip.compress(TEXT["de"], mtime=0)[:60]},
        "text/train.de.gz: can't be read (Compressed file ended before the end-of-stream marker was reached); "
        "check the file, or copy it again",
    ),
    "a folder for a file": (
        {"train.de": None, "train.de/x": b"x"},
        "text/train.de: can't be read (Is a directory); check the file, or copy it again",
    ),
    "sentences too long": (
        {"train.de": b"".join(line * 40 + b"\n" for line in TEXT["de"].splitlines())},
        "batch: no training pair fits into length 48; raise batch.length",
    ),
}

# The command line, after `python -m slt_lib`; TINY is the path of the study file.
NOT_TRAINED = "is not trained yet; `python -m slt_lib run tiny` does it"
COMMANDS = {
    "a study that is not there": (
        "run nosuch",
        "study 'nosuch': there is no params/nosuch.yaml; known studies: one",
    ),
    "another ending": ("data tiny.yml", "study 'tiny.yml': there is no params/tiny.yml.yaml; known studies: one"),
    "a path without ending": (
        "data params/one",
        "study 'params/one': there is no params/params/one.yaml; known studies: one",
    ),
    "a file that is not there": (
        "translate nosuch.yaml",
        "study 'nosuch.yaml': there is no nosuch.yaml; known studies: one",
    ),
    "a pair that the study lacks": ("run TINY --pair en-fr", "pair 'en-fr': tiny.yaml has en-de"),
    "a seed below 0": ("run TINY --seeds -1", "seeds: -1 is not a whole number from 0"),
    "percent": ("run TINY --levels 50", "levels: 50.0 is not a sparsity between 0 and 1 (0.9 means 90%)"),
    "levels that fall": (
        "run TINY --levels 0.9 0.5",
        "levels [0.9, 0.5] must rise: a pruned weight does not come back",
    ),
    "no level of the study": (
        "translate TINY --sparsity 0.7",
        "sparsity: 0.7 is not a level of tiny, which has [0.5, 0.6, 0.8]",
    ),
    "a translation by nobody": (
        "translate TINY --seed 7",
        f"tiny en-de seed 7: dense at sparsity 0 {NOT_TRAINED}",
    ),
    "a report of nothing": (
        "report nosuch",
        "HOME/figures/nosuch: no such figures folder; run the study first, or check its name",
    ),
    "a run that is not there": ("runs show abc", "HOME/runs: no run id begins with 'abc'; `runs list` shows them"),
    "a run of another folder": (
        "runs remove ../figures",
        "HOME/runs: no run id begins with '../figures'; `runs list` shows them",
    ),
    "no run named": ("runs remove", "runs remove: give the id of a run, or its first digits; `runs list` shows them"),
    "a run where all are listed": ("runs list abc", "runs list takes no id; `runs show abc` shows that run"),
    "a technique without its level": (
        "export TINY --technique lt -o HOME/model",
        "--technique lt: give its --sparsity, too; without one the model is dense",
    ),
    "a ticket with a type": (
        "export TINY --sparsity 0.5 --ticket --dtype bf16 -o HOME/model",
        "--ticket: a ticket has one form; leave out --format and --dtype",
    ),
    "a type that another library chooses": (
        "export TINY --sparsity 0.5 --format ctranslate2 --dtype bf16 -o HOME/model",
        "--format ctranslate2: CTranslate2 chooses its types when it loads a model; leave out --dtype",
    ),
    "a seed twice": ("run TINY --seeds 1 1", "seeds [1, 1] must differ from each other"),
    "no process at all": (
        "run TINY --jobs 0",
        "python -m slt_lib run: error: argument --jobs: '0' is not a whole number from 1",
    ),
    "a plan of nothing": ("plan nosuch", "study 'nosuch': there is no params/nosuch.yaml; known studies: one"),
    "a plan without speed": (
        "plan TINY --rate 0",
        "python -m slt_lib plan: error: argument --rate: '0' is not a number above 0",
    ),
    "a plan at two speeds": (
        "plan TINY --rate 9 --measure",
        "python -m slt_lib plan: error: argument --measure: not allowed with argument --rate",
    ),
    "a plan for no device": (
        "plan TINY --gpus 0",
        "python -m slt_lib plan: error: argument --gpus: '0' is not a whole number from 1",
    ),
    "a word for a level": (
        "run TINY --levels half",
        "python -m slt_lib run: error: argument --levels: invalid float value: 'half'",
    ),
    "no study named": ("run", "python -m slt_lib run: error: the following arguments are required: study"),
    "an unknown option": ("data TINY --fast", "python -m slt_lib: error: unrecognized arguments: --fast"),
}

# A notebook's cells: parameters as papermill -p and -y give them, and knobs of a technique.
NOTEBOOKS = {
    "-p seeds 1": (dict(seeds=1), "seeds: 1 is not a list; write [1]"),
    "seeds: '1'": (dict(seeds=["1"]), "seeds: '1' is not a whole number from 0"),
    "seeds: 1.5": (dict(seeds=[1.5]), "seeds: 1.5 is not a whole number from 0"),
    "seeds: null": (dict(seeds=None), "seeds: None is not a list; write []"),
    "-p levels 0.5": (dict(levels=0.5), "levels: 0.5 is not a list; write [0.5]"),
    "levels: '0.5'": (dict(levels=["0.5"]), "levels: '0.5' is not a number"),
    "levels: 50": (dict(levels=[50]), "levels: 50.0 is not a sparsity between 0 and 1 (0.9 means 90%)"),
    "-p pair de-en": (dict(pair="de-en"), "pair 'de-en': tiny.yaml has en-de"),
    "-p pair 1": (dict(pair=1), "pair: 1 is not a name; give it as text"),
    "-p study 1": (dict(study=1), "study: 1 is not a name; give it as text"),
    "a knob misspelt": (
        dict(rewnd=0.05),
        "slt has no knob 'rewnd'; it has study, seed, levels, rewind, source, checkpoint, optimizer, iterative, scope, "
        "criterion",
    ),
    "-r rewind 0.05": (dict(rewind="0.05"), "rewind: '0.05' is not a number"),
    "rewind in steps": (dict(rewind=100), "rewind 100 is not a fraction of the training from 0 to 1"),
    "another source": (dict(source="first"), "source 'first' is none of last, dense"),
    "another checkpoint": (dict(checkpoint="worst"), "checkpoint 'worst' is none of final, best"),
    "another optimizer": (dict(optimizer="sgd"), "optimizer 'sgd' is none of adafactor, adam"),
    "another start": (dict(recipe=techniques.slt_mp, start="third"), "start 'third' is none of first, second"),
    "a switch below the first level": (
        dict(recipe=techniques.slt_mp, switch=0.3),
        "sparsity 0.3 is below 0.5, which is pruned already: levels must rise",
    ),
    "another control": (
        dict(recipe=techniques.slt_control, control="both"),
        "control 'both' is none of mask, weights, none",
    ),
    "other signs": (
        dict(recipe=techniques.clt_control, signs="flipped"),
        "signs 'flipped' is none of kept, random",
    ),
}


def snapshot(home: Path) -> dict[str, bytes]:
    """Every file that a mistake must not leave or change."""
    files = {str(path.relative_to(home)): path for path in home.rglob("*") if path.is_file()}
    for path in home.glob("runs/sentences/*"):
        unseal(path)  # whole
    caches = ("runs/locks/", "runs/vocabularies/", "runs/sentences/", "cache/matplotlib/")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(caches)}


@pytest.fixture
def answered(home, monkeypatch, capsys, figure):
    """A function that runs a command which must fail, in `home`, and gives its line; nothing may be left behind."""
    figure("bad inputs answered")
    (home / "params").mkdir()
    (home / "params" / "one.yaml").write_text("{}")
    monkeypatch.chdir(home)

    def run(*arguments: str) -> str:
        before = snapshot(home)
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse, after its usage
            status = error.code
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert (status, said.out) == (2, ""), said
        assert len(lines) == 1 or lines[0].startswith("usage: "), said.err
        assert snapshot(home) == before
        return re.sub(r"\b[0-9a-f]{32}\b", "<id>", lines[-1].replace(str(home), "HOME"))

    return run


@pytest.mark.parametrize("case", FILES)
def test_a_study_file(case, answered, home):
    changes, line = FILES[case]
    content = changes if isinstance(changes, Raw) else yaml.safe_dump(changed(TINY, changes)).encode()
    (home / "tiny.yaml").write_bytes(content)
    assert answered("run", "tiny.yaml") == (line if line.startswith(WHOLE_LINES) else f"tiny.yaml: {line}")


@pytest.mark.parametrize("case", OWN)
def test_text_of_one_s_own(case, answered, home):
    changes, line = OWN[case]
    for split in ("train", "dev", "test"):
        for language, text in TEXT.items():
            path = home / "text" / f"{split}.{language}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
    corpus = {"name": "files", "folder": "text"}
    for key, value in changes.items():
        path = home / "text" / key
        if key in ("folder", "tests"):
            corpus[key] = value
        elif value is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(value)
    settings = changed(TINY, {"corpus": corpus, "vocabulary": 30})
    (home / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert answered("run", "tiny.yaml", "--techniques", "dense") == line


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command(case, answered, home, study_file):
    command, line = COMMANDS[case]
    path = study_file()
    assert answered(*(path if word == "TINY" else word for word in command.split())) == line


@pytest.mark.parametrize("case", NOTEBOOKS)
def test_a_notebook(case, home, study_file, session_study, monkeypatch, figure):
    figure("bad inputs answered")
    given, line = NOTEBOOKS[case]
    options = {"study": study_file()} | {
        key: value for key, value in given.items() if key in Study.__init__.__annotations__
    }
    knobs = {key: value for key, value in given.items() if key not in (*options, "recipe")}
    recipe = given.get("recipe", techniques.slt)
    monkeypatch.setenv("SLT_RUNS", str(session_study.store.path))  # where dense is trained, if another test was here
    monkeypatch.chdir(home)
    before = snapshot(home)
    with pytest.raises(InputError) as caught:
        experiment = Study(**options)
        experiment.follow([experiment.chain(recipe, 1, **knobs)])
    assert str(caught.value) == line
    assert snapshot(home) == before


# The store and the figures ------------------------------------------------------------


def test_a_corpus_that_can_not_be_had(answered, home, study_file, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:  # a port at which nobody listens once this is closed
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(corpora, "MULTI30K_URL", address)
    path = study_file({"corpus": {"name": "multi30k"}})
    name, cache = "test_2016_flickr.en.gz", "HOME/cache/slt_lib/multi30k"
    by_hand = f"download {address}/{name} by hand to {cache}/{name}"
    assert answered("data", path) == f"{name}: can't be downloaded ([Errno 111] Connection refused); {by_hand}"


def test_one_s_own_copy_of_multi30k_is_another(answered, home, study_file, monkeypatch):
    name = "test_2016_flickr.en.gz"
    (home / "data" / "multi30k").mkdir(parents=True)
    (home / "data" / "multi30k" / name).write_bytes(b"")
    monkeypatch.setenv("SLT_DATA", str(home / "data"))
    found, wanted = hashlib.sha256(b"").hexdigest(), corpora.MULTI30K_SHA256[name]
    assert answered("data", study_file({"corpus": {"name": "multi30k"}})) == (
        f"HOME/data/multi30k/{name}: sha256 is {found}, not {wanted}; "
        f"delete it, or put {corpora.MULTI30K_URL}/{name} there"
    )


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        (
            "SLT_RUNS",
            "HOME/file/x/locks/vocabulary-<id>.lock: Not a directory; set SLT_RUNS to a folder that can be written",
        ),
        ("SLT_FIGURES", "HOME/file/x/tiny: can't be written; set SLT_FIGURES to a folder that can"),
    ],
)
def test_a_place_that_can_not_be_written(variable, line, answered, home, study_file, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv(variable, str(home / "file" / "x"))
    assert answered("run", study_file()) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"{", "run.json is missing or not readable"),
        (b'{"files": {}, "sha256": "0"}', "run.json was altered: its checksum does not match"),
        (None, "ticket.json is missing or not readable"),
    ],
)
def test_a_damaged_run_is_shown(content, line, answered, home):
    train_id = digest({"seed": 1})[:32]
    folder = home / "runs" / train_id
    write_json(folder / "run.json", sealed({"files": {}}))
    if content is not None:
        write_json(folder / "ticket.json", {"seed": 1})
        (folder / "run.json").write_bytes(content)
    expected = f"HOME/runs/<id>/{line}; run its study again to train it again"
    assert answered("runs", "show", train_id[:8]) == expected


def test_two_runs_that_begin_alike(answered, home):
    for last in "01":
        write_json(home / "runs" / ("0" * 31 + last) / "run.json", sealed({"files": {}}))
    assert answered("runs", "remove", "000") == "HOME/runs: 2 run ids begin with '000'; `runs list` shows them"
