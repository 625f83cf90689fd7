"""The engine on a cluster, as far as one machine allows: Slurm's commands are stand-ins, the jobs run here."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import TINY, changed
from test_kill import ROOT, STUDY

from slt_lib import plan, techniques
from slt_lib.base import settings as params

SLURM = "sbatch srun sacct squeue scancel scontrol sinfo".split()
COMMAND = (
    *("snakemake", "--profile", "profiles/slurm", "--config", "study=tiny", "gpus=1"),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5"),
    *("--restart-times", "1", "--", "figures/tiny/markers/99_report.done"),
)


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLT_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"PATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "SLT_PROGRESS": "lines"} | more


@pytest.fixture
def cluster(tmp_path, request):
    """A copy of what a study needs, and Slurm's commands in its `bin`; what still runs in the end is killed."""
    folder = tmp_path / "project"
    for name in ("notebooks", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    for name in ("params", "queue", "bin"):
        (folder / name).mkdir()
    (folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"pairs": {"en-de": ["slt"]}, "levels": [0.5]}))
    for name in SLURM:
        shutil.copy(ROOT / "tests" / "slurm" / "slurm", folder / "bin" / name)
    yield folder
    for job in (folder / "queue").iterdir():
        if not (job / "rc").exists():
            end(job, "CANCELLED")


def end(job: Path, state: str) -> None:
    """SIGKILL to all processes of a job, as Slurm does in the end."""
    leader = psutil.Process(int((job / "pid").read_text()))
    for process in [leader, *leader.children(recursive=True)]:
        process.kill()
    (job / "rc").write_text(state)


def start(cluster: Path, *command: str) -> subprocess.Popen:
    path = f"{cluster / 'bin'}:{environment()['PATH']}"
    with (cluster / "said").open("ab") as sink:
        return subprocess.Popen(
            command, cwd=cluster, env=environment(PATH=path, QUEUE=str(cluster / "queue")), stdout=sink, stderr=sink
        )


def wait_for(condition, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def calls(cluster: Path) -> dict[str, str]:
    """Each job in the queue: its number -> the arguments of sbatch but for the command, on one line."""
    found = {}
    for job in sorted((cluster / "queue").iterdir()):
        found[job.name] = " ".join(line for line in (job / "call").read_text().splitlines() if "--wrap" not in line)
    return found


def test_a_study_in_a_queue(cluster, figure):
    """The controller is killed while a job trains, which goes on; the next call waits for it and does the rest.

    One of its jobs is cut by the time limit: it is submitted again, and goes on from its last checkpoint.
    """
    figure("kills survived", 2)
    first = start(cluster, *COMMAND)
    wait_for(lambda: any(cluster.glob("runs/*/resume.safetensors")), first)
    assert first.poll() is None, (cluster / "said").read_text()
    first.kill()
    first.wait()
    assert len(calls(cluster)) == 1  # the chain waits for the dense run

    second = start(cluster, *COMMAND)
    dense, chain = "runs/*/run.json", "runs/*/resume.safetensors"
    wait_for(lambda: any(cluster.glob(dense)) and any(cluster.glob(chain)), second)
    assert second.poll() is None, (cluster / "said").read_text()
    end(max((cluster / "queue").iterdir()), "TIMEOUT")
    assert second.wait(timeout=600) == 0, (cluster / "said").read_text()
    said = (cluster / "build/tiny/en-de/jobs/04_slt.seed1.log").read_text()
    assert int(re.search(r": step (\d+)/100", said).group(1)) > 10  # the second try of this job

    asked = calls(cluster)
    rules = [re.search(r"--comment rule_([a-z]+)", call).group(1) for call in asked.values()]
    assert rules == ["train"] * 4 + ["report"]
    for rule, call in zip(rules, asked.values(), strict=True):
        trains = rule == "train"
        assert (" --gpus=1" in call) == trains and " --requeue" in call and " --cpus-per-task=1" in call
        assert f" -t {1440 if trains else 60} " in call and f" --mem {64000 if trains else 16000} " in call
        assert " -p gpu " in call
    steps = [(cluster / "queue" / job / "srun").read_text() for job in asked]
    assert ["--gpus=1" in step for step in steps] == [True] * 4 + [False]

    alone = {"SLT_RUNS": str(cluster / "alone"), "SLT_FIGURES": str(cluster / "expected")}
    command = (sys.executable, "-m", "slt_lib", "run", "tiny")
    subprocess.run(command, cwd=cluster, env=environment(**alone), check=True, capture_output=True)
    results = (cluster / "figures" / "tiny" / "results.csv").read_bytes()
    assert results == (cluster / "expected" / "tiny" / "results.csv").read_bytes()
    assert [row.split(",")[2] for row in results.decode().splitlines()[1:]] == ["dense", "slt"]


# The paper's DAG ------------------------------------------------------------


def count(said: str) -> dict[str, int]:
    """The jobs of each rule, from the table that a dry run ends with."""
    return {
        rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", said.split("Job stats:")[-1], re.MULTILINE)
    }


def test_dry_runs_of_the_paper(tmp_path, figure):
    """Both presets, from nothing, with neither text nor network: a chain is one job, whatever the number of levels."""
    folder = tmp_path / "project"
    for name in ("notebooks", "profiles", "params"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    commands = {
        "wmt14-en-de": ("profiles/slurm", "gpus=8"),
        "wmt14-en-fr": ("profiles/default", "gpus=0"),
    }
    # an address that answers nothing: a download would fail, and with it the dry run
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    runs = {
        study: subprocess.Popen(
            ("snakemake", "-n", "--profile", profile, "--config", f"study={study}", gpus),
            cwd=folder,
            env=environment(**nowhere),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for study, (profile, gpus) in commands.items()
    }
    for study, process in runs.items():
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        settings = params.load(str(folder / "params" / f"{study}.yaml"))
        [(pair, techniques)] = settings.pairs.items()
        seeds, levels = len(settings.seeds), len(settings.levels)
        chains = len(set(techniques) - {"mp"})
        wanted = {
            "train": seeds * (1 + chains + settings.ablations),  # dense, each chain, the ablations
            "train_level": seeds * levels,  # MP
            "display": 4 + chains + settings.ablations,  # corpus, dense, MP, and sizes and speeds
            "report": 1,
            "all": 1,
        }
        assert count(said) == wanted | {"total": sum(wanted.values())}
        figure("jobs of the paper's studies planned", sum(wanted.values()))
    assert sum(1 for _ in folder.glob("runs/**/*")) == 0


@pytest.mark.parametrize("ablations", [True, list(techniques.comparisons([0.5]))], ids=["the paper's", "all"])
def test_jobs_with_gpus_share_no_training(tmp_path, ablations):
    """Where two jobs want one training, one waits for the other: no GPU is held at a lock, no lock need reach far."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "params").mkdir()
    levels = [0.5, 0.6, 0.7]
    settings = changed(TINY, {"seeds": [1], "levels": levels, "ablations": ablations, "training": {"steps": 40}})
    settings["rehearsal"] = False
    path = folder / "params" / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = ("snakemake", "--dag", "dot", "--config", "study=tiny", "gpus=2")
    said = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    names = {}
    for node, label in re.findall(r'(\d+)\[label = "([^"]*)"', said.stdout):
        found = dict(part.split(": ") for part in label.split("\\n") if ": " in part)
        names[node] = (found.get("notebook", label), *([float(found["level"])] if "level" in found else []))
    before = {name: set() for name in names.values()}
    for one, other in re.findall(r"(\d+) -> (\d+)", said.stdout):
        before[names[other]].add(names[one])
    for _ in before:
        for name in before:
            before[name] |= set().union(*(before[each] for each in before[name]))

    study = plan.Planned(str(path))
    wanted = {("01_dense",): ["dense"], ("03_lt",): ["lt"], ("04_slt",): ["slt"], ("05_clt",): ["clt"]}
    wanted |= {("06_slt_mp",): ["slt-mp"], ("07_mp_slt",): ["mp-slt"], ("08_ablations",): []}
    wanted = {name: [study.chain(techniques.RECIPES[each], 1) for each in names] for name, names in wanted.items()}
    wanted |= {("02_mp", level): [study.chain(techniques.mp, 1, [level])] for level in levels}
    wanted["08_ablations",] = techniques.ablations(study)
    tickets = {name: set(study.tickets_of(chains)) for name, chains in wanted.items()}
    assert set(tickets) <= set(before)
    wanting = {}
    for name, asked in tickets.items():
        for train_id in asked:
            wanting.setdefault(train_id, []).append(name)
    shared = [names for names in wanting.values() if len(names) > 1]
    assert [("04_slt",), ("06_slt_mp",), ("08_ablations",)] in shared  # the dense run pruned to 50% at once
    for names in shared:
        assert any(all(one == other or one in before[other] for other in names) for one in names), names
