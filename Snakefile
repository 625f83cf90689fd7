# One job is one notebook for one pair and seed (MP also one level); a display job shows all its seeds; a report closes.
# A job's marker in figures/<study>/parts is set after papermill has ended well: a notebook that it wrote is no proof.
import os
import sys

from slt_lib import params
from slt_lib.errors import InputError

STUDY = config.get("study", "quick")
try:
    SETTINGS = params.load(STUDY)
except InputError as error:
    raise WorkflowError(str(error))

FIGURES = os.path.join(os.environ.get("SLT_FIGURES", "figures"), STUDY)
BUILD = os.path.join(os.environ.get("SLT_BUILD", "build"), STUDY)
PARTS = f"{FIGURES}/parts"
NOTEBOOKS = {
    "mp": "02_mp",
    "lt": "03_lt",
    "slt": "04_slt",
    "clt": "05_clt",
    "slt-mp": "06_slt_mp",
    "mp-slt": "07_mp_slt",
}
PAPERMILL = (
    "OMP_NUM_THREADS={threads} SLT_PROGRESS=lines python notebooks/papermill {input.notebook} {params.out} -k python3"
    " --no-progress-bar -p study " + STUDY
)


def job(notebook, pair, seed, level=None):
    return f"{PARTS}/{notebook}.{pair}.seed{seed}" + (f".level{level:g}" if level is not None else "") + ".done"


def jobs(notebook, pair):
    """The markers of a notebook's jobs."""
    levels = SETTINGS.levels if notebook == "02_mp" else [None]
    return [job(notebook, pair, seed, level) for seed in SETTINGS.seeds for level in levels]


def notebooks(pair):
    own = [NOTEBOOKS[technique] for technique in SETTINGS.pairs[pair]]
    return ["01_dense", *own] + (["08_ablations"] if SETTINGS.ablations and pair == next(iter(SETTINGS.pairs)) else [])


DISPLAYS = [f"{BUILD}/{pair}/{name}.ipynb" for pair in SETTINGS.pairs for name in ["00_corpus", *notebooks(pair)]]


wildcard_constraints:
    notebook=r"\d\d_\w+",
    pair="|".join(SETTINGS.pairs),
    seed=r"\d+",
    level=r"[\d.]+",


# The markers are named here too, so that figures thrown away come back although every notebook is still there.
MARKERS = [marker for pair in SETTINGS.pairs for name in notebooks(pair) for marker in jobs(name, pair)]


onstart:
    # A training that a killed call left behind goes on; where this call wants the same run, it waits for that one.
    from slt_lib.store import Store

    for line in Store().held():
        print(f"{line}; what this study needs of it is waited for", file=sys.stderr, flush=True)


rule all:
    input:
        MARKERS,
        DISPLAYS,
        f"{PARTS}/99_report.done",


def before(wildcards):
    """What a job would otherwise wait for at a lock: the dense run, and for ablations the chains that they vary."""
    if wildcards.notebook == "01_dense":
        return []
    first = ["01_dense"]
    if wildcards.notebook == "08_ablations":
        first += [NOTEBOOKS[name] for name in ("slt", "clt") if name in SETTINGS.pairs[wildcards.pair]]
    return [job(name, wildcards.pair, wildcards.seed) for name in first]


rule train:
    input:
        before,
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        PARTS + "/{notebook}.{pair}.seed{seed}.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/jobs/{notebook}.seed{seed}.ipynb",
    log:
        BUILD + "/{pair}/jobs/{notebook}.seed{seed}.log",
    threads: SETTINGS.threads
    shell:
        "mkdir -p $(dirname {params.out}) && " + PAPERMILL + " -p pair {wildcards.pair}"
        " -y 'seeds: [{wildcards.seed}]' --log-output > {log} 2>&1 && touch {output}"


rule train_level:
    input:
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        PARTS + "/{notebook}.{pair}.seed{seed}.level{level}.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/jobs/{notebook}.seed{seed}.level{level}.ipynb",
    log:
        BUILD + "/{pair}/jobs/{notebook}.seed{seed}.level{level}.log",
    threads: SETTINGS.threads
    shell:
        "mkdir -p $(dirname {params.out}) && " + PAPERMILL + " -p pair {wildcards.pair}"
        " -y '{{seeds: [{wildcards.seed}], levels: [{wildcards.level}]}}' --log-output > {log} 2>&1 && touch {output}"


rule display:
    input:
        lambda w: [] if w.notebook == "00_corpus" else jobs(w.notebook, w.pair),
        lambda w: [] if w.notebook in ("00_corpus", "01_dense") else jobs("01_dense", w.pair),
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        BUILD + "/{pair}/{notebook}.ipynb",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/.{notebook}.ipynb",
    log:
        BUILD + "/{pair}/{notebook}.log",
    threads: SETTINGS.threads
    shell:
        PAPERMILL + " -p pair {wildcards.pair} > {log} 2>&1 && mv {params.out} {output}"


rule report:
    input:
        MARKERS,
        notebook="notebooks/99_report.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        f"{PARTS}/99_report.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=f"{BUILD}/99_report.ipynb",
    log:
        f"{BUILD}/99_report.log",
    shell:
        PAPERMILL + " > {log} 2>&1 && jupyter nbconvert --to html --output-dir "
        + FIGURES
        + " --output report {params.out} >> {log} 2>&1 && touch {output}"
