# One job is one notebook for one pair and seed, so a whole chain of levels waits in a queue only once. MP's levels are
# independent: each is a job of its own, except in a rehearsal. A display job then shows all seeds, and a report ends
# the study. A job's marker in figures/<study>/markers is set only after papermill has succeeded, since papermill also
# writes the notebook of a failed job.
import os
import sys

from slt_lib.base import settings as params
from slt_lib.base.errors import InputError

STUDY = config.get("study", "quick")
try:
    SETTINGS = params.load(STUDY)
except InputError as error:
    raise WorkflowError(str(error))

# config gpus: with 0 the notebook trains; with N each job has N GPUs and trains on them before its notebook runs.
try:
    GPUS = int(config.get("gpus", 0))
    assert GPUS >= 0
except (ValueError, AssertionError):
    raise WorkflowError(f"gpus={config['gpus']}: the number of GPUs per job must be a whole number from 0")

FIGURES = os.path.join(os.environ.get("SLT_FIGURES") or "figures", STUDY)
BUILD = os.path.join(os.environ.get("SLT_BUILD") or "build", STUDY)
DONE = f"{FIGURES}/markers"
NOTEBOOKS = {name: technique.notebook for name, technique in params.TECHNIQUES.items()}
PAPERMILL = (
    "OMP_NUM_THREADS={threads} SLT_PROGRESS=lines python notebooks/papermill {input.notebook} {params.out}"
    " -k python3 --no-progress-bar --no-request-save-on-cell-execute -p study_name " + STUDY
)


def training(levels=""):
    """Command with which a job with GPUs trains before its notebook, which then finds its runs in the store.

    The ablations and the subnetworks have no such command: their notebooks train, on one GPU.
    """
    if not GPUS:
        return ""
    start = "python" if GPUS == 1 else f"torchrun --standalone --nproc-per-node {GPUS}"
    return (
        "name={wildcards.notebook} && name=${{name#*_}} && {{ [ $name = ablations ] || [ $name = subnetworks ] || OMP_NUM_THREADS={threads} "
        + start + " -m slt_lib run " + STUDY + " --no-report --pair {wildcards.pair} --seeds {wildcards.seed}" + levels
        + " --techniques ${{name//_/-}}; }} > {log} 2>&1 && "
    )


LOG = " --log-output " + (">>" if GPUS else ">") + " {log} 2>&1 && touch {output}"


def gpus(wildcards):
    return min(GPUS, 1) if wildcards.notebook in ("08_ablations", "11_subnetworks") else GPUS


def cpus(wildcards):
    return SETTINGS.threads * max(1, gpus(wildcards))


def job(notebook, pair, seed, level=None):
    return f"{DONE}/{notebook}.{pair}.seed{seed}" + (f".level{level:g}" if level is not None else "") + ".done"


def jobs(notebook, pair):
    """The markers of a notebook's jobs: one per seed; for MP one per seed and level.

    In a rehearsal all levels of MP are one job, and subnetworks are retrained with one seed.
    """
    levels = SETTINGS.levels if notebook == "02_mp" and not SETTINGS.rehearsal else [None]
    seeds = SETTINGS.seeds[:1] if notebook == "11_subnetworks" and SETTINGS.rehearsal else SETTINGS.seeds
    return [job(notebook, pair, seed, level) for seed in seeds for level in levels]


def notebooks(pair):
    own = [NOTEBOOKS[technique] for technique in SETTINGS.pairs[pair]]
    if not SETTINGS.ablations or pair != next(iter(SETTINGS.pairs)):
        return ["01_dense", *own]
    subnetworks = SETTINGS.rehearsal or "subnetworks" in NAMED.split(", ")
    return ["01_dense", *own, "08_ablations"] + ["11_subnetworks"] * subnetworks


# the comparisons of 08_ablations that the study file names
NAMED = ", ".join(SETTINGS.ablations) if isinstance(SETTINGS.ablations, list) else ""


def comparisons(wildcards):
    return f" -y 'comparisons: [{NAMED}]'" if NAMED and wildcards.notebook == "08_ablations" else ""


# Notebooks that read the runs of several techniques: one job per pair, after the techniques.
ANALYSES = ["12_sparse"]
DISSECTED = [next(iter(SETTINGS.pairs))] if SETTINGS.dissect else []
DISPLAYS = [
    f"{BUILD}/{pair}/{name}.ipynb" for pair in SETTINGS.pairs for name in ["00_corpus", *notebooks(pair), *ANALYSES]
]


def shown(wildcards):
    """The jobs whose runs a notebook shows."""
    if wildcards.notebook == "00_corpus":
        return []
    names = notebooks(wildcards.pair) if wildcards.notebook in ANALYSES else ["01_dense", wildcards.notebook]
    return [marker for name in dict.fromkeys(names) for marker in jobs(name, wildcards.pair)]


wildcard_constraints:
    notebook=r"\d\d_\w+",
    pair="|".join(SETTINGS.pairs),
    seed=r"\d+",
    level=r"[\d.]+",


# The markers are inputs of `all` too, so that deleted figures come back although every notebook is still there.
MARKERS = [marker for pair in SETTINGS.pairs for name in notebooks(pair) for marker in jobs(name, pair)]
MARKERS += [f"{DONE}/10_dissect.{pair}.done" for pair in DISSECTED]


onstart:
    # A training that a killed call left behind continues; this call waits for it if it needs the same run.
    from slt_lib.base.store import Store

    for line in Store().held():
        print(f"{line}; if this study needs that run, it waits for it", file=sys.stderr, flush=True)


rule all:
    input:
        MARKERS,
        DISPLAYS,
        f"{DONE}/99_report.done",


def before(wildcards):
    """Jobs that must end first: the dense run and, for the ablations, the chains that they vary.

    With GPUs also every other job that needs a training of this one: so no job holds a GPU while it waits at a lock,
    and no lock has to work across nodes.
    """
    name, techniques = wildcards.notebook, SETTINGS.pairs[wildcards.pair]
    if name == "01_dense":
        return []
    if name == "11_subnetworks":  # it compares their masks
        names = ["01_dense", *(NOTEBOOKS[each] for each in ("mp", "lt", "slt", "clt") if each in techniques)]
        own = f".seed{wildcards.seed}."
        return [marker for each in names for marker in jobs(each, wildcards.pair) if own in marker]
    first, levels = ["01_dense"], []
    if name == "08_ablations":
        named = set(NAMED.split(", "))
        varied = ["slt", "clt"] + ["slt-mp"] * bool({"source", "stepwise", "switch"} & named)
        varied = [*techniques] if "final" in named else varied + ["lt"] * ("stability" in named)
        first += [NOTEBOOKS[technique] for technique in varied if technique in techniques and technique != "mp"]
        # where they are compared
        levels = [level for level in SETTINGS.levels if level <= 0.5 or "final" in named]
    if GPUS and name == "06_slt_mp" and "slt" in techniques and SETTINGS.levels[0] == 0.5:
        first += ["04_slt"]  # both prune the dense run to 50% at once
    if name == "07_mp_slt":
        levels = [level for level in SETTINGS.levels if level == 0.6]  # where it leaves MP
    shared = levels if GPUS and "mp" in techniques else []
    found = [job(each, wildcards.pair, wildcards.seed) for each in first]
    levels = dict.fromkeys(None if SETTINGS.rehearsal else level for level in shared)
    return found + [job("02_mp", wildcards.pair, wildcards.seed, level) for level in levels]


rule train:
    input:
        before,
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        DONE + "/{notebook}.{pair}.seed{seed}.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/jobs/{notebook}.seed{seed}.ipynb",
        asked=comparisons,
    log:
        BUILD + "/{pair}/jobs/{notebook}.seed{seed}.log",
    threads: SETTINGS.threads
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
    shell:
        "mkdir -p $(dirname {params.out}) && " + training() + PAPERMILL + " -p pair {wildcards.pair}"
        " -y 'seeds: [{wildcards.seed}]'{params.asked}" + LOG


rule train_level:
    input:
        lambda wildcards: before(wildcards) if GPUS else [],
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        DONE + "/{notebook}.{pair}.seed{seed}.level{level}.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/jobs/{notebook}.seed{seed}.level{level}.ipynb",
    log:
        BUILD + "/{pair}/jobs/{notebook}.seed{seed}.level{level}.log",
    threads: SETTINGS.threads
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
    shell:
        "mkdir -p $(dirname {params.out}) && " + training(" --levels {wildcards.level}") + PAPERMILL
        + " -p pair {wildcards.pair} -y '{{seeds: [{wildcards.seed}], levels: [{wildcards.level}]}}'" + LOG


rule display:
    input:
        shown,
        notebook="notebooks/{notebook}.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        BUILD + "/{pair}/{notebook}.ipynb",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/.{notebook}.ipynb",
        asked=comparisons,
    log:
        BUILD + "/{pair}/{notebook}.log",
    threads: SETTINGS.threads
    shell:
        PAPERMILL + " -p pair {wildcards.pair}{params.asked} > {log} 2>&1 && mv {params.out} {output}"


# One job for all seeds, after the techniques and the ablations, which train most of its controls.
rule dissect:
    input:
        lambda w: [marker for name in notebooks(w.pair) for marker in jobs(name, w.pair)],
        notebook="notebooks/10_dissect.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        DONE + "/10_dissect.{pair}.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=BUILD + "/{pair}/10_dissect.ipynb",
    log:
        BUILD + "/{pair}/10_dissect.log",
    threads: SETTINGS.threads
    resources:
        gpu=min(GPUS, 1),
        cpus_per_task=SETTINGS.threads,
    shell:
        "mkdir -p $(dirname {params.out}) && " + PAPERMILL + " -p pair {wildcards.pair}"
        " > {log} 2>&1 && touch {output}"


rule report:
    input:
        MARKERS,
        notebook="notebooks/99_report.ipynb",
        study=f"params/{STUDY}.yaml",
    output:
        f"{DONE}/99_report.done",
    params:
        recipe=params.RECIPE_VERSION,
        out=f"{BUILD}/99_report.ipynb",
    log:
        f"{BUILD}/99_report.log",
    shell:
        PAPERMILL + " > {log} 2>&1 && nbstripout --keep-output --keep-count --extra-keys"
        " 'metadata.papermill metadata.language_info cell.metadata.execution cell.metadata.papermill' {params.out}"
        " >> {log} 2>&1 && cp {params.out} " + FIGURES + "/report.ipynb && python -m slt_lib report " + STUDY
        + " --html >> {log} 2>&1 && touch {output}"
