"""Damage: a file that is not what was written is noticed, named, and made again or refused, never used.

A run from someone else is opened like one's own: nothing in it is executed, no name or link leads out of its folder,
and no header makes the reader take more memory than the file has bytes.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from slt_lib.base import store
from slt_lib.base.errors import InputError
from slt_lib.base.store import Damaged, RunFolder, Store, digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.study import Study, results
from slt_lib.study.scores import magnitudes, scores
from slt_lib.techniques import RECIPES
from slt_lib.train import loop as training

SPARSE, CUT = 0.5, 7


class Cut(BaseException):
    """A kill."""


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny):
    """A store with a dense run, a sparse one with its scores, and in a second store the sparse one cut at step 7."""
    folder = tmp_path_factory.mktemp("original")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny | {"levels": [SPARSE]}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_RUNS", str(folder / "runs"))
        study = Study(str(path))
        dense, sparse = chain(study).runs
        scores(sparse)
        shutil.copytree(folder / "runs", folder / "cut")
        study.store.path = folder / "cut"
        study.store.remove(sparse.id)
        write_json(sparse.folder / "ticket.json", sparse.ticket.identity)
        steps = iter(range(1, 99))

        def report(count, _):
            if count and next(steps) == CUT:
                raise Cut

        with pytest.raises(Cut):
            training.train(study.params.training, study.data, sparse.ticket.start(), sparse.folder, (3,), report=report)
    return folder, dense.id, sparse.id


@pytest.fixture
def laid(original, tmp_path, monkeypatch):
    """A function that copies one of the two stores and gives a study on it, and the sparse run's folder."""

    def lay(name: str = "runs") -> tuple[Study, RunFolder]:
        folder, _, sparse = original
        shutil.copytree(folder / name, tmp_path / "runs")
        shutil.copy(folder / "tiny.yaml", tmp_path)
        monkeypatch.setenv("SLT_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("SLT_PROGRESS", "lines")
        study = Study(str(tmp_path / "tiny.yaml"))
        return study, study.store.folder(sparse)

    return lay


def chain(study: Study):
    [followed] = study.follow([study.chain(RECIPES["slt"], 1)])
    return followed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes but for locks and provenance, which holds times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "provenance.json"}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "flipped": flipped,
    "missing": None,
}
AGAIN, COMPUTED, RESTARTED = "it must be trained again", "computing it again", "starting this training again"
FILES = {
    "run.json": AGAIN,
    "theta_0000003.safetensors": AGAIN,
    "theta_0000012.safetensors": AGAIN,
    "mask.safetensors": AGAIN,
    "ticket.json": AGAIN,
    "magnitudes.json": COMPUTED,
    "scores/*.json": COMPUTED,
    "../vocabularies/*.json": COMPUTED,
    "provenance.json": "leaving its cells empty",
}


def harm(folder: RunFolder, name: str, damage: str) -> Path:
    [path] = folder.path.glob(name)
    if DAMAGES[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return path


# Damage ------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run(name, damage, laid, original, capsys, figure):
    figure("damage noticed")
    study, folder = laid()
    path = harm(folder, name, damage)
    run = chain(study).runs[-1]
    scores(run), magnitudes(run), results.provenance_row(run)
    told = [line for line in capsys.readouterr().err.splitlines() if ": step " not in line]
    unmade = name == "run.json" or FILES[name] == COMPUTED  # what is not there was not made yet: nothing to complain of
    if damage == "missing" and unmade:
        assert told == []
    else:
        [line] = told
        assert path.name in line and line.endswith(f"; {FILES[name]}")
    assert contents(study.store.path) == contents(original[0] / "runs")
    if name != "provenance.json":  # which can't be made again
        run = chain(study).runs[-1]
        scores(run), magnitudes(run), results.provenance_row(run)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["resume.safetensors", "theta_0000003.safetensors", "ticket.json"])
def test_a_file_of_a_training_under_way(name, damage, laid, original, capsys, figure):
    figure("damage noticed")
    study, folder = laid("cut")
    assert {path.name for path in folder.path.iterdir()} >= {"resume.safetensors", name}
    path = harm(folder, name, damage)
    scores(chain(study).runs[-1])
    told = [line for line in capsys.readouterr().err.splitlines() if ": step " not in line]
    if name == "ticket.json" or (name, damage) == ("resume.safetensors", "missing"):  # written again, never read
        assert told == []
    else:
        [line] = told
        assert path.name in line and line.endswith(f"; {RESTARTED}")
    assert contents(study.store.path) == contents(original[0] / "runs")


def test_what_belongs_to_another_run_is_not_used(laid, original, capsys):
    """Whole files, at the wrong place: a checksum alone would believe them."""
    study, folder = laid("cut")
    other = study.store.folder(original[1])
    shutil.rmtree(folder.path)
    shutil.copytree(other.path, folder.path)
    run = chain(study).runs[-1]
    assert "ticket.json is not what was written: it belongs to another run, or was altered; it must be trained" in (
        capsys.readouterr().err
    )
    scores(run)
    assert contents(study.store.path) == contents(original[0] / "runs")


@pytest.mark.parametrize("name", ["theta_0000012.safetensors", "mask.safetensors"])
def test_weights_of_another_shape_are_not_used(name, laid):
    """Sealed as they should be, by whoever made them: every checksum is right."""
    study, folder = laid()
    tensors, metadata = folder.load(name)
    first = min(key for key, tensor in tensors.items() if tensor.dim() == 2)
    record = folder.record()
    record["files"][name] = folder.save(name, tensors | {first: tensors[first][:, :3]}, metadata)
    write_json(folder / "run.json", sealed(record))
    run = chain(study).runs[-1]
    with pytest.raises(InputError, match=rf"{name} is not of this study's model; `python -m slt_lib runs remove"):
        run.mask if name.startswith("mask") else run.weights("final")  # noqa: B018


def test_a_resume_file_of_another_run_is_not_used(laid, original, capsys):
    study, folder = laid("cut")
    tensors, state = folder.load("resume.safetensors")
    folder.save("resume.safetensors", tensors, state | {"of": "0" * 64})
    scores(chain(study).runs[-1])
    assert f"resume.safetensors belongs to another training; {RESTARTED}" in capsys.readouterr().err
    assert contents(study.store.path) == contents(original[0] / "runs")


def test_damage_while_a_study_runs_is_refused(laid, capsys):
    study, folder = laid()
    run = chain(study).runs[-1]
    harm(folder, "theta_0000012.safetensors", "flipped")
    ends = r"theta_0000012\.safetensors is not what was written: .*; run it again, and it is trained again$"
    with pytest.raises(InputError, match=ends):
        run.weights()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bit_of_any_file(original, data):
    """Every single bit is covered, if not by a checksum of bytes then by one of what they mean."""
    folder = Store(original[0] / "runs").folder(original[2])
    [score] = folder.path.glob("scores/*.json")
    sums = folder.record()["files"]
    read = {
        "run.json": folder.record,
        "ticket.json": folder.ticket,
        score.relative_to(folder.path): lambda: unseal(score),
        **{name: functools.partial(folder.load, name, sha256) for name, sha256 in sums.items()},
    }
    name = data.draw(st.sampled_from([*read]))
    path = folder.path / name
    whole = path.read_bytes()
    meant = read[name]()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(content)
        found = read[name]()
    except Damaged:
        pass
    else:
        assert name not in sums and found == meant  # the e of 1e-05 may be an E
    finally:
        path.write_bytes(whole)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bit_of_a_resume_file(original, data):
    folder = Store(original[0] / "cut").folder(original[2])
    path = folder / "resume.safetensors"
    whole, (tensors, meant) = path.read_bytes(), folder.load("resume.safetensors")
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(content)
        found, state = folder.load("resume.safetensors")
    except Damaged:
        pass
    else:
        if state != {}:  # without its seal it is nobody's, and thrown away
            # another way to write the same: E for the e of 1e-05, a true of 3, which is read as 1
            assert state == meant and store.checksum(found) == store.checksum(tensors)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_of_multi30k(damage, tmp_path, monkeypatch, figure):
    """One's own copy is refused and kept; the cache's is fetched again (tests/test_corpora.py)."""
    figure("damage noticed")
    folder = tmp_path / "multi30k"
    folder.mkdir()
    sums = {}
    for name in corpora.MULTI30K_SHA256:
        content = gzip.compress(f"{name} one\n{name} two\n".encode(), mtime=0)
        (folder / name).write_bytes(content)
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(corpora, "MULTI30K_SHA256", sums)
    monkeypatch.setattr(corpora, "MULTI30K_URL", (tmp_path / "nowhere").as_uri())
    monkeypatch.setenv("SLT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(corpora.multi30k("en-de").train) == 2
    path = folder / "val.de.gz"
    if damage == "missing":
        path.unlink()
        with pytest.raises(InputError, match=r"^val\.de\.gz: can't be downloaded \(.*\); download file:.* by hand to "):
            corpora.multi30k("en-de")
        return
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: .*; (delete it, or )?put file:.* there( again)?$"):
        corpora.multi30k("en-de")
    assert path.read_bytes() == before


# A disk that fills ------------------------------------------------------------


@contextlib.contextmanager
def tmpfs(folder: Path):
    """A file system of 96 KiB; the function it gives frees space."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "slt-test", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def limited(folder: Path):
    """A limit on the size of a file, as `ulimit -f` sets; the function it gives lifts it."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield lift
    finally:
        lift()


@pytest.mark.parametrize(
    ("disk", "line"),
    [
        (tmpfs, r"no space left on the disk \(0\.\d MiB needed\); free some, then run it again"),
        (limited, r"larger than a file may be here \(0\.\d MiB needed\); raise that limit \(ulimit -f\), then run it"),
    ],
)
def test_a_disk_that_fills(disk, line, original, tmp_path, monkeypatch):
    shutil.copy(original[0] / "tiny.yaml", tmp_path)
    with disk(tmp_path / "disk") as free:
        monkeypatch.setenv("SLT_RUNS", str(tmp_path / "disk"))
        study = Study(str(tmp_path / "tiny.yaml"))
        for _ in range(2):  # and again, as a person who did not read would
            with pytest.raises(InputError, match=line) as caught:
                chain(study)
            assert "\n" not in str(caught.value) and str(tmp_path / "disk") in str(caught.value)
            assert not list((tmp_path / "disk").rglob("*.part"))
            assert all(study.store.folder(train_id).record() for train_id in study.store.ids())
        free()
        scores(chain(study).runs[-1])
        assert contents(tmp_path / "disk") == contents(original[0] / "runs")


# Safe to open ------------------------------------------------------------


@contextlib.contextmanager
def little_memory(spare: int = 256 << 20):
    """What is opened may take so many bytes of address space at most; no limit where /proc does not say how many."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def tensors_file(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


HUGE = 1 << 33
HEADERS = {
    "a huge tensor": tensors_file({"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}, b"0" * 64),
    "a small place for it": tensors_file({"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 64]}}, b"0" * 64),
    "a product that overflows": tensors_file(
        {"x": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 64]}}, b"0" * 64
    ),
    "one place twice": tensors_file(
        {name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for name in "xy"}, b"0" * 64
    ),
    "a place before its end": tensors_file({"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}, b"0" * 8),
    "a huge header": tensors_file(b"{}", length=1 << 60),
    "a header beyond the file": tensors_file(b"{}", length=1 << 20),
    "a type that is none": tensors_file({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
    "brackets without end": tensors_file(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no numbers": tensors_file({"x": {"dtype": "F32", "shape": ["a"], "data_offsets": "b"}}, b"0000"),
    "more after the last": tensors_file({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4096),
    "metadata of brackets": save({"x": torch.zeros(1)}, {"json": "[" * 100_000}),
    "metadata that is a list": save({"x": torch.zeros(1)}, {"json": "[1]"}),
    "metadata without a seal": save({"x": torch.zeros(1)}, {"json": '{"step": 3}'}),
    "metadata of no number": save({"x": torch.zeros(1)}, {"json": '{"step": NaN, "sha256": ""}'}),
    "a seal that lacks the tensors": save({"x": torch.zeros(1)}, {"json": json.dumps(sealed({"step": 3}))}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_file_of_tensors_that_lies(case, tmp_path):
    folder = RunFolder(tmp_path)
    (folder / "x.safetensors").write_bytes(HEADERS[case])
    with pytest.raises(Damaged, match=r"x\.safetensors (can't be read|was altered)"), little_memory():
        folder.load("x.safetensors")


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
DOCUMENTS = {
    "brackets without end": b"[" * 100_000,
    "mappings without end": DEEP,
    "infinity": b'{"a": 1e999, "sha256": "0"}',
    "half a character": b'{"a": "\\ud800", "sha256": "0"}',
    "a number of many digits": b'{"a": ' + b"9" * 100_000 + b', "sha256": "0"}',
    "a list": b"[1, 2]",
    "text": b'"sha256"',
}


@pytest.mark.parametrize("case", DOCUMENTS)
@pytest.mark.parametrize("name", ["run.json", "ticket.json"])
def test_json_that_is_no_record(name, case, tmp_path):
    folder = Store(tmp_path).folder("0" * 32)
    folder.path.mkdir()
    (folder / name).write_bytes(DOCUMENTS[case])
    with pytest.raises(Damaged, match=re.escape(name)):
        folder.record() if name == "run.json" else folder.ticket()


@pytest.mark.parametrize(
    "value", [{}, {"files": 3}, {"files": ["run.json"]}, {"files": {}}, {"files": {}, "steps": "9"}]
)
def test_a_sealed_record_of_other_shape(value, tmp_path):
    folder = Store(tmp_path).folder("0" * 32)
    write_json(folder / "run.json", sealed(value))
    with pytest.raises(Damaged, match=r"run\.json is no record of a run"):
        folder.record()


@pytest.mark.parametrize("tokenizer", ["", "[" * 100_000, 3, None, '{"added_tokens": []}', "of another size"])
def test_a_vocabulary_that_is_none(tokenizer, laid, original, capsys):
    study, folder = laid()
    [path] = folder.path.parent.glob("vocabularies/*.json")
    if tokenizer == "of another size":
        split = study.corpus.train
        tokenizer = type(study.vocabulary).build([*split.source, *split.target], 119).text
        study = Study(str(folder.path.parent.parent / "tiny.yaml"))
    write_json(path, sealed({"tokenizer": tokenizer}))
    study.prepare()
    assert len(study.vocabulary) == 120
    assert capsys.readouterr().err == f"{path} is not a vocabulary of 120 word pieces; building it again\n"
    assert contents(study.store.path) == contents(original[0] / "runs")


@pytest.mark.parametrize("name", ["run.json", "ticket.json", "theta_0000012.safetensors", "mask.safetensors"])
def test_a_link_is_not_followed(name, laid, original, tmp_path, capsys):
    """Not even to the very bytes that belong there: the folder would not be whole without what is outside."""
    study, folder = laid()
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    before = outside.read_bytes()
    (folder / name).symlink_to(outside)
    chain(study)
    line = f"{folder / name} is a link: what it points at is no part of the run; it must be trained again"
    assert line in capsys.readouterr().err
    assert outside.read_bytes() == before and not (folder / name).is_symlink()
    scores(chain(study).runs[-1])
    assert contents(study.store.path) == contents(original[0] / "runs")


def test_a_linked_folder_of_scores_is_refused(laid, tmp_path):
    study, folder = laid()
    shutil.move(folder / "scores", tmp_path / "outside")
    (folder / "scores").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="scores is a link: what it points at is no part of the run"):
        scores(chain(study).runs[-1])


def test_what_is_written_over_a_link_stays_inside(laid, tmp_path, capsys):
    study, folder = laid()
    [score] = folder.path.glob("scores/*.json")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    score.unlink()
    score.symlink_to(outside)
    scores(chain(study).runs[-1])
    assert f"{score} is a link: what it points at is no part of the run; {COMPUTED}" in capsys.readouterr().err
    assert outside.read_text() == "mine" and not score.is_symlink()


def test_a_pipe_or_a_folder_in_place_of_a_file(laid, capsys):
    study, folder = laid()
    for make in (os.mkfifo, os.mkdir):
        (folder / "run.json").unlink()
        make(folder / "run.json")
        chain(study)  # and does not wait for a writer
        assert "run.json is not a regular file; it must be trained again" in capsys.readouterr().err


def test_a_linked_run_is_removed_without_what_it_points_at(laid, tmp_path):
    study, folder = laid()
    shutil.move(folder.path, tmp_path / "outside")
    folder.path.symlink_to(tmp_path / "outside")
    study.store.remove(folder.path.name)
    assert not folder.path.is_symlink() and (tmp_path / "outside" / "run.json").exists()


def test_a_lock_that_is_a_link_is_not_opened(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "x.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"x\.lock: can't be written"), Store(tmp_path).lock("x"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


# Left behind ------------------------------------------------------------


def test_what_a_kill_left_half_written_goes(laid, original):
    study, folder = laid("cut")
    for name in (".mask.safetensors.x.part", ".ticket.json.x.part"):
        (folder.path / name).write_bytes(b"half")
    scores(chain(study).runs[-1])
    assert contents(study.store.path) == contents(original[0] / "runs")


def test_the_holder_of_a_lock_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    path = tmp_path / "locks" / "x.lock"
    program = "import sys, time; from pathlib import Path; from slt_lib.base.store import Store"
    program += "\nwith Store(Path(sys.argv[1])).lock('x'):\n print('held', flush=True); time.sleep(2)"
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        holder = rf"{re.escape(str(path))}: held by process {other.pid} on [\w.-]+"
        [line] = Store(tmp_path).held()
        assert re.fullmatch(holder, line)
        with Store(tmp_path).lock("x"):
            assert re.fullmatch(rf"{holder}; waiting until that ends\n", capsys.readouterr().err)
            assert path.read_text().startswith(f"{os.getpid()} on ")
        assert Store(tmp_path).held() == []


def test_a_lock_that_another_machine_left_is_told(tmp_path, capsys):
    """Its holder was killed there, or holds it still where locks do not reach; one given back says nothing."""
    path = tmp_path / "locks" / "x.lock"
    path.parent.mkdir()
    path.write_text("7 on elsewhere\n")
    for told in (1, 0):
        with Store(tmp_path).lock("x"):
            pass
        said = capsys.readouterr().err
        assert said.count("process 7 on elsewhere did not give it back: it was killed, or locks do not") == told
        assert said.count("\n") == told and path.read_text() == ""


def test_the_name_of_a_run_is_the_digest_of_its_ticket(original):
    for train_id in original[1:]:
        folder = Store(original[0] / "runs").folder(train_id)
        assert digest(folder.ticket()).startswith(train_id)
