"""Runs on disk: a damaged one is noticed and trained again, names stay inside, files appear whole or not at all."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.setting import Setting
from slt_lib.base import store
from slt_lib.base.devices import device
from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.base.settings import load, parse
from slt_lib.base.store import Damaged, RunFolder, Store, canonical, digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.study import results, workers
from slt_lib.train import lockstep
from slt_lib.train import loop as training

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def whole(session_study):
    """Every file of a run that lies well in its store, by name."""
    [run] = session_study.train([session_study.ticket(1)])
    return {path.name: path.read_bytes() for path in run.folder.path.iterdir() if path.is_file()}


@pytest.fixture
def laid(make_study, whole):
    """A study whose store holds a copy of that run, and its ticket; and the folder."""
    study = make_study()
    ticket = study.ticket(1)
    folder = study.store.folder(ticket.train_id)
    folder.path.mkdir(parents=True)
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    return study, ticket, folder


def refuse(*_, **__):
    raise AssertionError("this must not train")


# Damage ------------------------------------------------------------


def test_a_whole_run_is_found(laid, monkeypatch, capsys):
    study, ticket, _ = laid
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(training, "replay", refuse)
    [run] = study.train([ticket])
    assert run.weights()["embedding"].shape == (120, 16) and capsys.readouterr().err == ""


def test_a_file_that_is_no_safetensors(tmp_path):
    folder = RunFolder(tmp_path)
    for content in (b"", b"junk", b"\xff" * 64, b"\x80\x02}q\x00."):  # the last one is a pickle
        (folder / "x").write_bytes(content)
        with pytest.raises(Damaged, match="can't be read"):
            folder.load("x")
    with pytest.raises(Damaged, match="can't be read"):
        folder.load("missing")


# Names ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/etc/passwd", "a/b", "a/../../b", ".hidden", "a..b", "a\x00b", "a\n", "a\\b", "x."]
)
def test_names_stay_inside_the_run(tmp_path, name):
    folder = RunFolder(tmp_path / "run")
    for act in (lambda: folder / name, lambda: folder.load(name), lambda: folder.verify({name: "0"})):
        with pytest.raises(Damaged, match="is not a valid file name of a run"):
            act()


def test_a_record_that_points_elsewhere_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = Store(tmp_path).folder("0" * 32)
    write_json(folder / "run.json", sealed({"files": {"../secret": "0" * 64}}))
    with pytest.raises(Damaged, match="is not a valid file name of a run"):
        folder.record()


@pytest.mark.parametrize("name", ["..", "../" + "0" * 32, "0" * 32 + "/..", "", "abc", "G" * 32, "0" * 32 + "\n"])
def test_ids_stay_inside_the_store(tmp_path, name):
    with pytest.raises(InputError, match="is not the id of a run"):
        Store(tmp_path).folder(name)
    with pytest.raises(InputError, match="is not the id of a run"):
        Store(tmp_path).remove(name)


def test_ids_and_removal(tmp_path):
    runs = Store(tmp_path)
    assert runs.ids() == []
    for letter in "ba":
        write_json(runs.folder(letter * 32) / "run.json", sealed({"files": {}}))
    write_json(runs.folder("c" * 32) / "ticket.json", {})  # under way
    write_json(tmp_path / f"{'b' * 32}.old" / "run.json", {})  # a copy that somebody made
    assert runs.ids() == ["a" * 32, "b" * 32]
    runs.remove("a" * 32)
    runs.remove("d" * 32)  # not there: nothing to do
    assert runs.ids() == ["b" * 32]
    assert runs.folder("c" * 32).record() is None


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SLT_RUNS", str(tmp_path / "mine"))
    assert Store().path == tmp_path / "mine"
    (tmp_path / "params").mkdir()
    monkeypatch.delenv("SLT_RUNS")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")  # as from notebooks/
    assert Store().path == tmp_path / "runs"


def test_an_empty_variable_is_an_unset_one(monkeypatch, tiny):
    def all_places():
        training = parse(tiny, "tiny").training
        return [
            Store().path,
            results.figures("tiny"),
            corpora.places("multi30k"),
            Setting.read().folder,
            device(),
            lockstep.group_size(training, 100),
            workers.default_jobs(1),
        ]

    names = [f"SLT_{name}" for name in ("RUNS", "FIGURES", "DATA", "BUILD", "DEVICE", "LOCKSTEP")]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    unset = all_places()
    for name in names:
        monkeypatch.setenv(name, "")
    assert all_places() == unset


# Values ------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.text(), JSON))
def test_what_is_sealed_is_unsealed(tmp_path_factory, value):
    value.pop("sha256", None)
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    write_json(path, sealed(value))
    assert unseal(path) == value


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"{}", b'{"sha256": 3}', b'{"a": 1, "sha256": "00"}', b"\xff\xfe"]
)
def test_what_is_not_sealed(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"run\.json"):
        unseal(path)


def test_an_altered_value_is_noticed(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, sealed({"status": "failed", "x": 1.5}))
    path.write_text(path.read_text().replace("failed", "ok"))
    with pytest.raises(Damaged, match="was altered: its checksum does not match"):
        unseal(path)
    with pytest.raises(Damaged, match="is missing or not readable"):
        unseal(tmp_path / "nothing")


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_the_order_of_keys_does_not_matter(value):
    assert canonical(value) == canonical(dict(reversed(value.items())))
    assert digest(json.loads(canonical(value))) == digest(value)


def test_values_that_differ_have_other_digests():
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1}, {"a": True}, {"a": 1, "b": 1}]
    assert len({digest(value) for value in values}) == len(values)
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_numbers_are_spelled_one_way_in_a_study_file(study_file):
    # 1 and 1.0, 0.5 and 5.0e-1, keys in another order: the same study.
    one = study_file({"keep": [1], "levels": [0.5], "training": {"warmup": 1, "checkpoint": 1}}, "one")
    other = study_file({"keep": [1.0], "levels": [0.5], "training": {"warmup": 1.0, "checkpoint": 1.0}}, "other")
    text = Path(other).read_text().replace("levels:\n- 0.5\n", "")
    Path(other).write_text("levels: [5.0e-1]\n" + text)
    assert load(one) == load(other)
    assert digest(load(one).model_dump()) == digest(load(other).model_dump())


# Writing ------------------------------------------------------------


def test_tensors_come_back_to_the_bit(tmp_path):
    folder = RunFolder(tmp_path / "run")
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.tensor([True, False]), "c": torch.tensor([-0.0, 1e-45])}
    sha = folder.save("x.safetensors", tensors, {"k": [1.5, "é"]})
    found, metadata = folder.load("x.safetensors", sha)
    assert metadata == {"k": [1.5, "é"]}
    assert all(found[n].contiguous().numpy().tobytes() == t.contiguous().numpy().tobytes() for n, t in tensors.items())
    assert folder.save("y.safetensors", dict(reversed(tensors.items())), {"k": [1.5, "é"]}) == sha


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    for fault in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), KeyboardInterrupt()):

        def fail(*_, fault=fault):
            raise fault

        for call in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(store.os, call, fail)
                with pytest.raises((InputError, OSError, KeyboardInterrupt)):
                    write_bytes(path, b"new and longer")
            assert os.listdir(path.parent) == ["file"] and path.read_bytes() == b"old"


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(InputError) as caught:
        write_bytes(tmp_path / "x", b"0" * 2**20)
    assert (
        str(caught.value)
        == f"{tmp_path / 'x'}: no space left on the disk (1.0 MiB needed); free some, then run it again"
    )


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(InputError, match="SLT_RUNS"), Store(runs).lock("x"):
            pass
        with pytest.raises(InputError, match="SLT_RUNS"):
            write_bytes(runs / "0" / "x", b"")


def test_drop_removes_checkpoints_and_leftovers_alone(tmp_path):
    folder = RunFolder(tmp_path)
    names = ["theta_0000003.safetensors", "theta_0000006.safetensors", "run.json", "mask.safetensors", "ticket.json"]
    strays = [".theta_0000009.safetensors.x.part", ".resume.safetensors.x.part"]
    for name in [*names, *strays]:
        (tmp_path / name).write_text("")
    folder.drop({"theta_0000006.safetensors"})
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_one_trains_while_another_waits(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from slt_lib.base.store import Store
        with Store(Path(sys.argv[1])).lock("x"):
            print("held", flush=True)
            sys.stdin.readline()
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], **pipes)
    try:
        assert first.stdout.readline() == "held\n"
        with (tmp_path / "locks" / "x.lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        first.kill()  # and a kill frees it
        first.wait()
    with Store(tmp_path).lock("x"):
        pass
