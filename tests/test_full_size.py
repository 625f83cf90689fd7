"""The paper's model at its full size, on CPU: `make full-size`, some minutes, about 4 GB of disk.

wmt14-en-de as it stands, 61,298,688 matrix weights, on text made here that gives a vocabulary of 33,708 word pieces;
only the corpus, the length of the training and what is decoded on dev are smaller. The file is also what each process
runs.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import changed

from slt_lib.base.seeds import stream
from slt_lib.study import Study
from slt_lib.train.loop import replay

ROOT = Path(__file__).resolve().parent.parent
STEPS, CUT = 10, 6  # checkpoints at 5 and 10
CHANGES = {
    "seeds": [1],
    "corpus": {"name": "files", "folder": "text"},
    "keep": [],
    "threads": 1,
    "training": {
        "batch": {"rows": 8, "length": 32},
        "steps": STEPS,
        "checkpoint": 0.5,
        "gradual": {"every": 0.4, "until": 0.8},
        "dev_beam": 1,
        "dev_extra": 2,
        "dev_sentences": 2,
    },
}
pytestmark = pytest.mark.skipif(not os.environ.get("SLT_FULL_SIZE"), reason="make full-size")


class Killed:
    """The progress of a training that a kill ends at step CUT, where `cut` says so."""

    def __init__(self, cut: bool):
        self.cut, self.done = cut, 0

    def training(self, ticket):
        return self

    def __enter__(self):
        return self.report

    def report(self, steps, point):
        self.done += steps
        if self.cut and self.done == CUT:
            os.kill(os.getpid(), signal.SIGKILL)

    def __exit__(self, *error):
        pass


def work(folder: Path, what: str) -> None:
    """Train a ticket that is pruned while it trains ("run", or "cut"); or one step of the paper's batch ("step")."""
    study = Study(str(folder / "wmt14.yaml"))
    data, began = study.data, time.monotonic()
    told = {"vocabulary": len(study.vocabulary)}
    if what == "step":
        shape = study.params.training.batch.model_copy(update={"rows": 64, "length": 256})
        settings = study.params.training.model_copy(update={"batch": shape})
        told["target_slots"] = shape.rows * shape.length
        with study.threads():
            replay(settings, data, study.ticket(1).start(), [1], accumulate=8)
    else:
        [run] = study.train([study.ticket(1).gradual(0.9)], Killed(what == "cut"))
        told |= {"weights": run.record["prunable"], "losses": [point["loss"] for point in run.curve]}
        told |= {"sparsity": run.curve[-1]["sparsity"], "target_tokens": run.record["target_tokens"]}
    seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(told | {"seconds": round(seconds, 1), "peak_gib": round(peak, 2)}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with wmt14-en-de, changed, and its text: words of letters drawn at random."""
    folder = tmp_path_factory.mktemp("full")
    raw = yaml.safe_load((ROOT / "params" / "wmt14-en-de.yaml").read_text(encoding="utf-8"))
    settings = changed(raw, CHANGES | {"corpus": {"name": "files", "folder": str(folder / "text")}})
    (folder / "wmt14.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "text").mkdir()
    for side, language in enumerate(("en", "de")):
        generator = stream(1, "words", language)
        letters = generator.integers(ord("a"), ord("z") + 1, size=(25_000, 8)).astype("uint8")
        words = [row.tobytes().decode() for row in letters]
        for name, count in (("train", 4000), ("dev", 4), ("test", 4)):
            lines = (
                " ".join(words[i] for i in generator.integers(0, len(words), size=12 + side)) for _ in range(count)
            )
            (folder / "text" / f"{name}.{language}").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    return folder


def start(folder: Path, runs: str, what: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"SLT_RUNS": str(folder / runs), "SLT_DEVICE": "cpu", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, __file__, str(folder), what]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def told(ended: subprocess.CompletedProcess) -> dict:
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_ten_steps_of_the_paper_s_model_finish_and_resume(folder, capfd):
    unbroken = told(start(folder, "unbroken", "run"))
    assert unbroken["vocabulary"] == 33_708 and unbroken["weights"] == 61_298_688
    assert unbroken["sparsity"] == pytest.approx(0.9, abs=1e-6) and unbroken["losses"][1] < unbroken["losses"][0]
    assert start(folder, "broken", "cut").returncode == -signal.SIGKILL
    [run] = [path.parent for path in (folder / "broken").glob("*/resume.safetensors")]
    assert not (run / "run.json").exists()
    resumed = told(start(folder, "broken", "run"))
    assert resumed["losses"] == unbroken["losses"]
    names = {path.name for path in run.iterdir()} - {"provenance.json"}  # which holds times
    assert names == {path.name for path in (folder / "unbroken" / run.name).iterdir()} - {"provenance.json"}
    for name in names:
        assert (run / name).read_bytes() == (folder / "unbroken" / run.name / name).read_bytes(), name
    with capfd.disabled():
        print(f"\nten steps: {unbroken}\nresumed: {resumed}")


def test_one_step_of_the_paper_s_batch(folder, capfd):
    """64 rows of 256, in eight parts: 16,384 slots a side."""
    step = told(start(folder, "unbroken", "step"))
    with capfd.disabled():
        print(f"\none step of 64 x 256: {step}")


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
