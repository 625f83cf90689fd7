"""The measures, one function each. Systems run in turn, each in its own process, for several rounds."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks import joey
from benchmarks.inference import BATCH, SHAPES, SYSTEMS
from benchmarks.setting import ROOT, WARM, Setting
from benchmarks.table import OURS, Row, rows
from slt_lib.base.processes import cores

PRECISIONS = ("bf16", "fp32")
BEAMS = {"beam 4": 4, "greedy": 1}
SIZES = (64, 256)  # sentences per batch: each system decodes with the faster one
DEV_SCORINGS = 20  # per training: one checkpoint every 0.05
JOEY = "joeynmt 2.3.0 (fp32)"  # on a CPU it disables half precision


def started(what: str, precision: str, threads: int, seconds: float, *more) -> subprocess.Popen:
    """Start a worker with `threads` threads."""
    command = [sys.executable, "-m", "benchmarks.worker", what, precision, str(threads), str(seconds), *map(str, more)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "SLT_PROGRESS": "lines", "SLT_DEVICE": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def ended(process: subprocess.Popen) -> dict:
    """The last line of a worker, as JSON. Raises RuntimeError if the worker fails."""
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args[2:])} ended with {process.returncode}:\n{errors[-2000:]}")
    return json.loads(output.splitlines()[-1])


def asked(process: subprocess.Popen, line: str = "") -> float:
    """The number with which a worker answers a line of input. Raises RuntimeError if the worker fails."""
    try:
        print(line, file=process.stdin, flush=True)
        return float(process.stdout.readline())
    except (OSError, ValueError):
        ended(process)  # raises the worker's error
        raise


def worker(what: str, precision: str, threads: int, seconds: float, *more, at_once: int = 1) -> list[dict]:
    """Results of `at_once` workers that run together with `threads` threads each. Raises RuntimeError if one fails."""
    processes = [started(what, precision, threads, seconds, *more) for _ in range(at_once)]
    return [ended(process) for process in processes]


def tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def in_turn(rounds: int, systems: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The values of each system, taken once per round: A B C A B C."""
    values: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds):
        for name, take in systems.items():
            values[name].append(take())
            tell(f"round {turn + 1} of {rounds}: {name} {values[name][-1]:.4g}")
    return values


def training(setting: Setting) -> list[Row]:
    """Target tokens per second without padding: one training on all cores, and the sum of one training per core."""
    python, result = joey.environment(), []
    ways = {f"1 training on {cores()} threads": (1, cores())}
    if cores() > 1:
        ways |= {f"{cores()} trainings at once on a thread each": (cores(), 1)}

    def take(what: str, precision: str, at_once: int, threads: int) -> Callable[[], float]:
        return lambda: sum(one["rate"] for one in worker(what, precision, threads, setting.seconds, at_once=at_once))

    for way, (at_once, threads) in ways.items():
        systems = {
            (what, precision): take(what, precision, at_once, threads)
            for precision in PRECISIONS
            for what in (OURS, "plain", "products")
        }
        if python:
            systems["joeynmt", "fp32"] = lambda a=at_once, t=threads: joey.rate(python, setting, t, setting.seconds, a)
        values = in_turn(setting.rounds, {f"{what} {precision}": take for (what, precision), take in systems.items()})
        for precision in PRECISIONS:
            own = {what: values[f"{what} {precision}"] for what in (OURS, "plain", "products")}
            other = {JOEY: values["joeynmt fp32"]} if python else {}
            label = f"{setting.label()}; {way}; {precision}"
            result += rows("training", label, "target tokens/s", own | other)
    return result


def masks(setting: Setting) -> list[Row]:
    """A step at 90% sparsity compared with a dense one, and the share of the mask updates in a gradual training."""
    result = []
    for precision in PRECISIONS:
        label = f"{setting.label()}; 1 thread; {precision}"
        steps = {"dense": [], "sparse": []}
        for turn in range(setting.rounds):
            for kind, value in step_by_step({"dense": 0, "sparse": 90}, precision, 2 * setting.seconds).items():
                steps[kind].append(1000 * value)
                tell(f"round {turn + 1} of {setting.rounds}: {kind} {precision} {1000 * value:.4g}")
        result += rows("masks", f"{label}; a step, sparsity 0.9", "ms", steps, base="dense")
        [found] = worker("gradual", precision, 1, setting.seconds)
        share = 100 * found["updates"] / found["training"]
        result += rows("masks", f"{label}; gradual updates", "% of a training", {OURS: [share]})
    return result


def step_by_step(percents: dict[str, int], precision: str, seconds: float) -> dict[str, float]:
    """Median seconds of a step under each of the masks. Each has its own training and process; they step in turn.

    So other load on the machine affects all alike.
    """
    processes = {name: started("masks", precision, 1, seconds, percent) for name, percent in percents.items()}
    taken: dict[str, list[float]] = {name: [] for name in processes}
    rounds, until = 0, 0.0
    while rounds < 2 * WARM or time.perf_counter() < until:
        for name, process in processes.items():
            taken[name].append(asked(process))
        rounds, until = rounds + 1, until or time.perf_counter() + seconds
    for process in processes.values():
        ended(process)
    return {name: median(steps[WARM:]) for name, steps in taken.items()}


def decoding(setting: Setting, run_id: str = "") -> list[Row]:
    """Sentences per second on the first test set, and BLEU, of models trained equally long (or of our run `run_id`)."""
    python, result = joey.environment(), []
    if not run_id:
        tell(f"training ours for {setting.steps} steps")
        worker("train", "-", 1, 0)
    if python:
        tell(f"training JoeyNMT's for {setting.steps} steps")
        checkpoint = joey.train(python, setting, cores())

    def own(beam: int, size: int) -> dict:
        return worker("decode", "-", cores(), 0, beam, size, *([run_id] if run_id else []))[0]

    def theirs(beam: int, size: int) -> dict:
        return joey.decode(python, setting, checkpoint, cores(), beam, size)

    systems = {OURS: own} | ({JOEY: theirs} if python else {})

    def rate(system: str, beam: int, size: int) -> Callable[[], float]:
        return lambda: systems[system](beam, size)["rate"]

    test = next(iter(setting.study.corpus.tests))
    models = f"run {run_id[:12]}" if run_id else f"models of {setting.steps} steps"
    for name, beam in BEAMS.items():
        tried = {system: {size: take(beam, size) for size in SIZES} for system, take in systems.items()}
        size = {system: max(SIZES, key=lambda size, one=one: one[size]["rate"]) for system, one in tried.items()}
        first = {system: tried[system][size[system]] for system in systems}
        again = in_turn(setting.rounds - 1, {system: rate(system, beam, size[system]) for system in systems})
        label = f"{setting.label()}; {test}, {name}, {cores()} threads; {models}"
        rates = {system: [first[system]["rate"], *again[system]] for system in systems}
        result += rows("decoding", label, "sentences/s", rates)
        result += rows("decoding", label, "BLEU", {system: [first[system]["bleu"]] for system in systems})
        pieces = {system: [first[system]["pieces"]] for system in systems}
        result += rows("decoding", label, "pieces a translation", pieces)
        result += rows("decoding", label, "sentences at once", {system: [float(size[system])] for system in systems})
    return result


def inference(setting: Setting) -> list[Row]:
    """Sentences per second of dense and sparse models and CTranslate2, with random weights and forced length."""
    result = []
    for number, (name, shape) in enumerate(SHAPES.items()):
        many = BATCH * cores() * (4 if shape.hidden < 512 else 1)  # a minute is enough
        systems = {
            system: started("inference", "fp32", cores(), setting.seconds / 12, number, which)
            for which, system in enumerate(SYSTEMS)
        }
        for count, beam in ((many, 4), (many, 1), (1, 4), (1, 1)):
            ask = {system: partial(asked, process, f"{count} {beam}") for system, process in systems.items()}
            rates = {system: values[1:] for system, values in in_turn(setting.rounds + 1, ask).items()}  # 1: warm-up
            search, batch = "greedy" if beam == 1 else f"beam {beam}", min(count, BATCH)
            label = f"size of {name}; {search}, {count} sentences, {batch} at once, {cores()} threads"
            result += rows("inference", label, "sentences/s", rates)
        for process in systems.values():
            ended(process)
    return result


def scoring(setting: Setting) -> list[Row]:
    """Time of all scoring (20 times dev at beam 1, each test set once) relative to the steps of a training."""
    taken = setting.study.params.training
    worker("train", "-", 1, 0)
    found = worker("scoring", taken.precision, 1, setting.seconds)[0]
    dev, steps = DEV_SCORINGS * found["dev"], taken.steps * found["step"]
    label = f"{setting.label()}; {taken.steps} steps, 1 thread; {taken.precision}; model of {setting.steps} steps"
    result = []
    for what, value in {"dev": dev, "tests": found["tests"], "all": dev + found["tests"]}.items():
        result += rows("scoring", f"{label}; {what}", "% of a training", {OURS: [100 * value / steps]})
    return result


def overhead(setting: Setting) -> list[Row]:
    """`make study` on quick from an empty store, and again with all runs stored: only notebooks and engine."""
    folder = setting.folder / "quick"
    shutil.rmtree(folder, ignore_errors=True)
    places = {f"SLT_{name.upper()}": str(folder / name) for name in ("runs", "figures", "build")}
    environment = os.environ | places | {"SLT_PROGRESS": "lines", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("OMP_NUM_THREADS", None)

    def make() -> tuple[float, float]:
        """Wall-clock seconds, and CPU seconds of all cores."""
        used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        for command in (["python", "-m", "slt_lib", "data", "quick"], STUDY):
            log = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if log.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {log.returncode}:\n{log.stderr[-2000:]}")
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter() - began, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime

    wall, cpu = make()
    for name in ("figures", "build"):
        shutil.rmtree(folder / name)
    again, cpu_again = make()
    count = len(list(folder.glob("runs/*/provenance.json")))
    label = f"make study STUDY=quick, {cores()} cores, {count} trainings"
    shown = {"wall": wall, "cpu": cpu, "notebooks and engine, wall": again, "notebooks and engine, cpu": cpu_again}
    result = [Row("overhead", label, name, value, "s") for name, value in shown.items()]
    return [*result, Row("overhead", label, "notebooks and engine", 100 * cpu_again / cpu, "% of cpu")]


STUDY = ["snakemake", "--profile", "profiles/default", "--config", "study=quick"]
MEASURES = {
    "training": training,
    "masks": masks,
    "decoding": decoding,
    "inference": inference,
    "scoring": scoring,
    "overhead": overhead,
}
