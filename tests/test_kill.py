"""Kill anywhere: SIGKILL at random moments, the same command again, and in the end the same bytes as an unbroken run.

The short version kills `python -m slt_lib run` and one job of the engine. The long one (`make soak`) kills whatever
process of the whole engine a draw names. SLT_KILL_SEED repeats the draws, though not the machine's speed.
"""

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("SLT_KILL_SEED") or time.time_ns() % 10**6)
MINUTES = float(os.environ.get("SLT_SOAK_MINUTES") or 0)
STUDY = {
    "rehearsal": True,
    "pairs": {"en-de": ["mp", "slt"]},
    "seeds": [1],
    "levels": [0.5, 0.8],
    "corpus": {"name": "grammar", "train": 300, "dev": 20, "test": 20},
    "vocabulary": 300,
    "training": {
        "model": {"layers": 1, "hidden": 16, "filter": 32, "heads": 2},
        "batch": {"rows": 8, "length": 48},
        "steps": 100,  # about a second
        "peak_lr": {"adafactor": 0.05},
        "checkpoint": 0.1,
        "dev_sentences": 4,
        "dev_extra": 2,
    },
    "decoding": {"beam": 2, "extra": 2},
}
ENGINE = ("snakemake", "--profile", "profiles/default", "--config", "study=tiny")
DENSE = "figures/tiny/markers/01_dense.en-de.seed1.done"
PROGRAMS = {"ipykernel_launcher": "kernel", "papermill": "papermill", "snakemake": "snakemake", "slt_lib": "training"}


class Bench:
    """A copy of what a study needs. Its processes, orphans too, are known by a mark in their environment."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        for name in ("notebooks", "profiles"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "params").mkdir()
        (folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")

    def start(self, *command: str, log: str = "log") -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLT_")}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "SLT_PROGRESS": "lines",
            "SLT_DEVICE": "cpu",
            "SLT_BENCH": str(self.folder),
        }
        with (self.folder / log).open("ab") as sink:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=sink, stderr=sink, start_new_session=True
            )

    def run(self, log: str = "log") -> subprocess.Popen:
        return self.start(sys.executable, "-m", "slt_lib", "run", "tiny", log=log)

    def said(self, log: str = "log") -> str:
        path = self.folder / log
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Those alive, by what they are: training, kernel, papermill, snakemake or other (shells)."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLT_BENCH") != str(self.folder):
                    continue
                words = [Path(word).name for word in process.cmdline()]
                role = next((role for word, role in PROGRAMS.items() if word in words), "other")
                found.setdefault(role, []).append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        return found

    def kill(self, process: subprocess.Popen, draw: random.Random, victim: str = "") -> str:
        """SIGKILL to one process, to the process group of the command, or to everything as when power fails."""
        found = self.processes()
        roles = sorted(found.keys() - {"other"})
        victim = victim or draw.choice([*roles, "group", "everything"])
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            chosen = sum(found.values(), []) if victim == "everything" else [draw.choice(found[victim])]
            for each in chosen:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
        return victim

    def finish(self, process: subprocess.Popen | None, *command: str) -> None:
        """The same command until it ends well: once where nothing was killed in it, twice where something was."""
        if process is None or process.wait(timeout=600) != 0:
            assert self.start(*command).wait(timeout=600) == 0, self.said()[-3000:]
        deadline = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < deadline, f"still alive: {left}"
            time.sleep(0.2)

    def outcome(self) -> dict[str, bytes]:
        """Every file of the store and the figures but for what holds times; half-written ones must not count."""
        files = [path for name in ("runs", "figures") for path in (self.folder / name).rglob("*") if path.is_file()]
        timed = ("provenance", "cost_", "report.")
        return {
            str(path.relative_to(self.folder)): untimed(path)
            for path in files
            if path.suffix not in (".part", ".lock", ".done") and not any(word in path.name for word in timed)
        }


def untimed(path: Path) -> bytes:
    """A file's bytes; of a part those of its rows, without the provenance, which holds times."""
    if path.parent.name != "parts":
        return path.read_bytes()
    part = json.loads(gzip.decompress(path.read_bytes()))
    return json.dumps({kind: rows for kind, rows in part.items() if kind != "provenance"}).encode()


@pytest.fixture(scope="module")
def draw():
    return random.Random(SEED)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A study that nobody disturbed, and how long it took from its first checkpoint to its end."""
    bench = Bench(tmp_path_factory.mktemp("unbroken") / "project")
    process = bench.run()
    wait_for(lambda: ": step 10/" in bench.said() or process.poll() is not None)
    began = time.monotonic()
    assert process.wait(timeout=300) == 0, bench.said()
    return bench.outcome(), time.monotonic() - began


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_kills_of_a_study_in_one_process(unbroken, draw, tmp_path, figure):
    kills = 4
    print(f"seed {SEED}")
    expected, seconds = unbroken
    bench, done = Bench(tmp_path / "project"), 0
    while done < kills:
        before = bench.said().count(": step ")
        process = bench.run()
        if draw.random() < 0.2:  # while it starts
            time.sleep(draw.uniform(0.1, 2.0))
        else:
            wait_for(lambda: bench.said().count(": step ") > before or process.poll() is not None)  # noqa: B023
            time.sleep(draw.uniform(0, 1.6 * seconds / (kills + 1)))
        if process.poll() is not None:
            break
        bench.kill(process, draw, "everything")
        process.wait()
        done += 1
    figure("kills survived", done)
    bench.finish(None, sys.executable, "-m", "slt_lib", "run", "tiny")
    same(bench.outcome(), expected)


def test_what_a_killed_run_has_finished_is_in_the_results(unbroken, tmp_path, figure):
    """Rows are written as each run is scored, not when the last chain has ended."""
    figure("kills survived", 1)
    bench = Bench(tmp_path / "project")
    process = bench.run()
    wait_for(lambda: len(list(bench.folder.glob("runs/*/run.json"))) >= 3 or process.poll() is not None)
    wait_for(lambda: len(list(bench.folder.glob("figures/tiny/parts/*.gz"))) >= 2 or process.poll() is not None)
    bench.kill(process, random.Random(1), "everything")
    process.wait()
    parts = {path.name for path in bench.folder.glob("figures/tiny/parts/*.gz")}
    under_way = len(list(bench.folder.glob("runs/*/run.json"))) - len(parts)
    assert parts and 0 <= under_way <= 2  # of each process the run that it was still scoring
    assert bench.start(sys.executable, "-m", "slt_lib", "report", "tiny").wait(timeout=120) == 0, bench.said()
    with (bench.folder / "figures" / "tiny" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(parts)  # one test set
    bench.finish(None, sys.executable, "-m", "slt_lib", "run", "tiny")
    same(bench.outcome(), unbroken[0])


def test_kills_of_a_job_of_the_engine(unbroken, draw, tmp_path, figure):
    figure("kills survived", 2)
    print(f"seed {SEED}")
    bench = Bench(tmp_path / "project")
    command = (*ENGINE, "--", DENSE)
    resume = "runs/*/resume.safetensors"

    process = bench.start(*command)
    wait_for(lambda: any(bench.folder.glob(resume)) or process.poll() is not None)
    bench.kill(process, draw, "papermill")
    wait_for(lambda: "kernel" not in bench.processes(), 20)  # it notices that its parent is gone, and trains no more
    assert process.wait(timeout=60) != 0

    process = bench.start(*command)
    wait_for(lambda: "kernel" in bench.processes() or process.poll() is not None)
    time.sleep(draw.uniform(0, 4))
    victim = bench.kill(process, draw, draw.choice(["snakemake", "group", "everything"]))
    process.wait(timeout=60)
    print(f"killed papermill, then {victim}")
    bench.finish(None, *command)

    found = bench.outcome()
    [run] = {name.split("/")[1] for name in found if name.endswith("/run.json")}
    prefixes = (f"runs/{run}/", "figures/tiny/parts/en-de.dense.")
    assert f"runs/{run}/theta_0000100.safetensors" in found and f"{prefixes[1]}default.0.1.json.gz" in found
    same(*({k: v for k, v in files.items() if k.startswith(prefixes)} for files in (found, unbroken[0])))


@pytest.mark.skipif(not MINUTES, reason="make soak")
def test_soak(draw, tmp_path, figure, capfd):
    """Rounds of the whole engine, killed until it ends all the same; every round ends in the unbroken bytes."""

    def tell(text: str) -> None:
        with capfd.disabled():
            print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    began, killed, survived = time.monotonic(), [], 0
    tell(f"seed {SEED}")
    whole = Bench(tmp_path / "unbroken")
    whole.finish(None, *ENGINE)
    expected, seconds = whole.outcome(), time.monotonic() - began
    tell(f"an unbroken study takes {seconds:.0f} s")
    rounds = 0
    while len(killed) < 20 or time.monotonic() - began < 30 * MINUTES:  # half of the time at least
        assert time.monotonic() - began < 60 * MINUTES, f"{len(killed)} kills in {MINUTES:g} minutes"
        rounds += 1
        bench, process, count = Bench(tmp_path / f"round{rounds}"), None, 0
        while count < 12 and time.monotonic() - began < 60 * MINUTES - 3 * seconds:
            if process is None or process.poll() is not None:
                if process is not None and process.returncode == 0:
                    break
                process = bench.start(*ENGINE)
            wait = time.monotonic() + draw.uniform(1, seconds / 3)
            while time.monotonic() < wait and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None:
                killed.append(bench.kill(process, draw))
                count += 1
                tell(f"round {rounds}: killed {killed[-1]}")
                if killed[-1] in ("snakemake", "group", "everything"):
                    process.wait(timeout=60)
        bench.finish(process, *ENGINE)
        same(bench.outcome(), expected)
        survived += count
        tell(f"round {rounds}: {count} kills, and the bytes of the unbroken study")
    tell(f"kills survived {survived} of {len(killed)}: {dict(Counter(killed))}")
    figure("kills survived", len(killed))


# Two at once ------------------------------------------------------------


def test_two_studies_on_one_store(unbroken, tmp_path):
    """Each run is trained by one of them, the other waits or reads; a third that looks on sees whole files alone."""
    bench = Bench(tmp_path / "project")
    both = [bench.run(log=f"log{i}") for i in range(2)]
    seen = {}
    while any(process.poll() is None for process in both):
        for path in (path for name in ("runs", "figures") for path in (bench.folder / name).rglob("*")):
            if path.suffix in (".json", ".safetensors", ".csv") and "resume" not in path.name and path.is_file():
                try:
                    seen.setdefault(str(path.relative_to(bench.folder)), set()).add(path.read_bytes())
                except FileNotFoundError:  # a checkpoint that was not the best for long
                    continue
        for path in bench.folder.glob("runs/*/resume.safetensors"):
            try:
                load(path.read_bytes())
            except FileNotFoundError:
                continue
        time.sleep(0.05)
    assert [process.returncode for process in both] == [0, 0], bench.said("log0") + bench.said("log1")
    same(bench.outcome(), unbroken[0])

    for name, contents in seen.items():
        for content in contents:
            if name.endswith(".safetensors"):
                load(content)
            elif name.endswith(".json"):
                json.loads(content)
            else:
                assert content.endswith(b"\n")
        if name.startswith("runs/") and "provenance" not in name:
            assert len(contents) == 1, f"{name} changed"
    assert sum(name.endswith("/run.json") for name in seen) >= 4
    ended = Counter(line.split(": step")[0] for i in range(2) for line in bench.said(f"log{i}").splitlines())
    trained = [label for label in ended if label.startswith("en-de seed 1 ")]
    assert len(trained) == 5 and {ended[label] for label in trained} == {10}  # ten checkpoints each, by one process
