"""The engine on a cluster, as far as one machine allows: Slurm's commands are stand-ins, the jobs run here."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_engine import ROOT, STUDY

SLURM = "sbatch srun sacct squeue scancel scontrol sinfo".split()
COMMAND = (
    *("snakemake", "--profile", "profiles/slurm", "--config", "study=tiny", "gpus=1"),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5"),
    *("--restart-times", "0", "--", "figures/tiny/parts/99_report.done"),
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
    (folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    for name in SLURM:
        shutil.copy(ROOT / "tests" / "slurm" / "slurm", folder / "bin" / name)
    yield folder
    for job in (folder / "queue").iterdir():
        if not (job / "rc").exists():
            os.killpg(int((job / "pid").read_text()), signal.SIGKILL)


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


def test_a_study_in_a_queue_whose_controller_is_killed(cluster, figure):
    """SIGKILL to snakemake while a job trains; the job goes on, a second call waits for it and does the rest."""
    figure("kills survived")
    first = start(cluster, *COMMAND)
    wait_for(lambda: any(cluster.glob("runs/*/resume.safetensors")), first)
    assert first.poll() is None, (cluster / "said").read_text()
    first.kill()
    first.wait()
    assert len(calls(cluster)) == 1  # the chain waits for the dense run
    second = start(cluster, *COMMAND)
    assert second.wait(timeout=600) == 0, (cluster / "said").read_text()

    asked = calls(cluster)
    jobs = [re.search(r"--comment (\w+?)(_wildcards_\w*?)? ", call).group(1) for call in asked.values()]
    assert jobs in (["rule_train"] * 3 + ["rule_report"], ["rule_train"] * 2 + ["rule_report"])
    for rule, call in zip(jobs, asked.values(), strict=True):
        trains = rule == "rule_train"
        assert (" --gpus=1" in call) == trains and " --requeue" in call and " --cpus-per-task=1" in call
        assert f" -t {1440 if trains else 60} " in call and f" --mem {64000 if trains else 16000} " in call
        assert " -p gpu " in call
    assert all("--gpus=1" in (cluster / "queue" / job / "srun").read_text() for job in list(asked)[:-1])

    alone = {"SLT_RUNS": str(cluster / "alone"), "SLT_FIGURES": str(cluster / "expected")}
    command = (sys.executable, "-m", "slt_lib", "run", "tiny")
    subprocess.run(command, cwd=cluster, env=environment(**alone), check=True, capture_output=True)
    results = (cluster / "figures" / "tiny" / "results.csv").read_bytes()
    assert results == (cluster / "expected" / "tiny" / "results.csv").read_bytes()
    assert b",slt," in results
