"""Train the techniques of a study, and use and report its runs. The README names the studies."""

import argparse
import json
import os
import sys
import time

from slt_lib.base import settings as params
from slt_lib.base.errors import InputError

AFTER_THE_FIRST = 3.0  # seconds that other ranks wait before they print an error


def data(options) -> None:
    """Fetch, check and count the corpora of a study, and build its vocabularies."""
    from slt_lib.study import Study

    for pair in params.load(options.study).pairs:
        study = Study(options.study, pair)
        study.prepare()
        corpus = study.corpus
        counts = ", ".join(f"{name} {len(split):,}" for name, split in corpus.tests.items())
        print(f"{pair}: {corpus.name}, train {len(corpus.train):,}, dev {len(corpus.dev):,}, {counts} pairs")
        print(f"{pair}: vocabulary of {len(study.vocabulary):,} word pieces, sha256 {study.vocabulary.digest[:16]}")


def plan(options) -> None:
    """Print the cost of a study before it is run: trainings, tokens, FLOPs, disk, hours, and what is left to train."""
    from slt_lib import plan as costs

    print(costs.text(options.study, options.rate, options.gpus, options.measure))


def run(options) -> None:
    """Train all techniques of a study, several trainings at once, score each run when it ends, and write the report.

    Finished runs are read from the store. With --stored nothing is trained: what the store has is recorded. Under
    torchrun all processes train each ticket together.
    """
    from slt_lib import report
    from slt_lib.base import distributed
    from slt_lib.study import Study
    from slt_lib.study.results import figures, must_be_writable, record_run
    from slt_lib.study.stability import record_stability
    from slt_lib.study.start import record_start
    from slt_lib.study.workers import default_jobs
    from slt_lib.techniques import RECIPES, compared

    settings, folder = params.load(options.study), figures(params.name_of(options.study))
    must_be_writable(folder)
    with distributed.group():
        for pair in [options.pair] if options.pair else settings.pairs:
            study = Study(options.study, pair, options.seeds, options.levels)
            wanted = options.techniques or ([] if options.comparisons else ["dense", *settings.pairs[pair]])
            named = [(RECIPES[name], seed) for seed in study.seeds for name in wanted]
            if options.stored:  # each level by itself, so that a missing one hides no other
                chains = [study.through(*one, [level]) for one in named for level in study.levels]
            else:
                chains = [study.chain(*one) for one in named]
            groups = compared(study, options.comparisons)
            chains += [chain for group in groups.values() for chain in group]

            def write(chain, run):
                for checkpoint in chain.scored:
                    record_run(study, chain, run, checkpoint)  # noqa: B023 (called before the loop goes on)

            jobs = options.jobs or default_jobs(settings.threads)
            study.follow(chains, stored=options.stored, jobs=jobs, done=write)
            distributed.broadcast(lambda: record_start(study, chains))  # noqa: B023
            if "stability" in groups:
                whole = [chain for chain in groups["stability"] if not chain.reason]
                distributed.broadcast(lambda: record_stability(study, whole))  # noqa: B023
        if options.report:
            made = distributed.broadcast(lambda: report.render(folder))
            for path in made.values() if distributed.first() else ():
                print(os.path.relpath(path))


def runs(options) -> None:
    """List the runs of the store; show or remove one, given by its id or the beginning of its id."""
    from slt_lib.base.store import Damaged, Store

    store = Store()
    if options.what == "list":
        if options.id:
            raise InputError(f"runs list takes no id; `runs show {options.id}` shows that run")
        for train_id in store.ids():
            print(_summary(store.folder(train_id)))
        return
    if options.id is None:
        raise InputError(f"runs {options.what}: give the id of a run, or its first digits; `runs list` shows them")
    matches = [train_id for train_id in store.ids() if options.id and train_id.startswith(options.id)]
    if len(matches) != 1:
        found = f"{len(matches)} run ids begin" if matches else "no run id begins"
        raise InputError(f"{store.path}: {found} with {options.id!r}; `runs list` shows them")
    folder = store.folder(matches[0])
    if options.what == "remove":
        store.remove(matches[0])
        print(f"removed {folder.path}")
        return
    try:
        print(json.dumps({"ticket": folder.ticket(), "record": folder.record()}, indent=1))
    except Damaged as error:
        raise InputError(f"{error}; run its study again to train it again") from None


def _summary(folder) -> str:
    """One line about the run in a folder of the store."""
    from slt_lib.base.store import Damaged
    from slt_lib.study.operations import trained_with

    try:
        record, ticket = folder.record(), folder.ticket()
    except Damaged as error:
        return f"{folder.path.name}  damaged: {error}"
    sparsity = 100 * (1 - record["kept"] / record["prunable"])
    kind = trained_with(operation["do"] for operation in ticket["operations"])
    best = f"dev BLEU {record['best']['dev_bleu']:.1f}" if record["best"] else record["reason"]
    return (
        f"{folder.path.name}  {record['status']}  seed {ticket['seed']}  {kind:5}  sparsity {sparsity:.1f}%  "
        f"{record['steps']} steps  {best}"
    )


def translate(options) -> None:
    """Translate standard input, one sentence per line: with a run of a study, or with an exported model (--model)."""
    if options.model:
        if options.study or options.technique or options.sparsity:
            raise InputError("--model: the folder says which model it is; leave out the study and its options")
        from slt_lib import sparse

        translated = sparse.load(options.model).translate(_lines())
    else:
        from slt_lib.study import scores

        translated = scores.translate(_stored_run(options), _lines())
    for line in translated:
        print(line)


def export(options) -> None:
    """Write a trained model, or the ticket that it was trained from (--ticket), as a folder that needs no study."""
    from slt_lib.study import export as exports

    if options.ticket and (options.format, options.dtype) != ("slt", "fp32"):
        raise InputError("--ticket: a ticket has one form; leave out --format and --dtype")
    if options.format == "ctranslate2" and options.dtype != "fp32":
        raise InputError("--format ctranslate2: CTranslate2 chooses its types when it loads a model; leave out --dtype")
    run = _stored_run(options)
    technique = _technique(options)
    if options.ticket:
        print(exports.export_ticket(run, options.output, technique))
    else:
        print(exports.export(run, options.output, technique, options.format, options.dtype))


def _technique(options) -> str:
    """The technique whose run is meant. Raises InputError for a technique without its sparsity."""
    if options.technique not in ("", "dense") and not options.sparsity:
        raise InputError(f"--technique {options.technique}: give its --sparsity, too; without one the model is dense")
    return (options.technique or "slt") if options.sparsity else "dense"


def _stored_run(options):
    """The run of `--technique`, `--sparsity` and `--seed` in a study. Raises InputError if it is not trained."""
    from slt_lib.study import Study
    from slt_lib.techniques import RECIPES

    if not options.study:
        raise InputError("name a study, or a folder with --model")
    study, sparsity = Study(options.study, options.pair), options.sparsity
    study.require_levels("sparsity", [sparsity] if sparsity else [])
    technique = _technique(options)
    [chain] = study.follow([study.through(RECIPES[technique], options.seed, [sparsity])], stored=True)
    runs = [run for run in chain.runs if run.sparsity == sparsity]
    if not runs:
        raise InputError(chain.reason or f"{technique} has no run at sparsity {sparsity}")
    return runs[-1]


def _lines() -> list[str]:
    """The lines of standard input."""
    try:
        lines = sys.stdin.buffer.read().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start}); save the text as UTF-8") from None
    if not lines[-1]:  # the text ends with a line break
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def report(options) -> None:
    """Write tables, plots and verdicts on the claims of a study, from its figures folder alone."""
    from slt_lib import report as reports
    from slt_lib.study.results import figures

    folder = figures(params.name_of(options.study))
    if (options.into and options.html) or (options.allow_dirty and not options.into):
        raise InputError("--into goes without --html, and --allow-dirty with --into")
    if options.html:
        print(os.path.relpath(reports.write_page(folder)))
        return
    made = list(reports.render(folder).values())
    if options.into:
        made.append(reports.into(reports.load(folder), options.into, options.allow_dirty))
    for path in made:
        print(os.path.relpath(path))


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def rate(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m slt_lib", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, study=True):
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(function=function)
        if study:
            added.add_argument("study", help="name of a file in params/, or a path that ends in .yaml")
        return added

    command(data)
    added = command(plan)
    speed = added.add_mutually_exclusive_group()
    speed.add_argument("--rate", type=rate, metavar="TOKENS_PER_SECOND", help="target tokens per second of a training")
    speed.add_argument("--measure", action="store_true", help="measure that rate here, in about a minute")
    text = "GPUs or cores, with one training on each; default: 1"
    added.add_argument("--gpus", type=positive, default=1, metavar="N", help=text)
    added = command(run)
    added.add_argument("--pair", default="", help="one language pair; default: all of the study")
    added.add_argument("--seeds", type=int, nargs="+", default=(), help="default: the study's")
    added.add_argument("--levels", type=float, nargs="+", default=(), help="default: the study's")
    names = ("dense", *params.TECHNIQUES)
    text = "default: dense and those of the pair"
    added.add_argument("--techniques", nargs="+", choices=names, default=(), help=text)
    text = "comparisons of notebook 08, such as again or controls; without --techniques only these are trained"
    added.add_argument("--comparisons", nargs="+", metavar="NAME", default=(), help=text)
    text = "trainings at once; default: one per core, or fewer if each takes several threads"
    added.add_argument("--jobs", type=positive, default=0, help=text)
    added.add_argument("--stored", action="store_true", help="train nothing; record the runs that are in the store")
    added.add_argument("--no-report", dest="report", action="store_false", help="do not write the report")
    added = command(runs, study=False)
    added.add_argument("what", choices=("list", "show", "remove"), help="list all runs; show or remove the run ID")
    added.add_argument("id", nargs="?", help="the id of a run, or its first digits")
    for function, optional in ((translate, "?"), (export, None)):
        added = command(function, study=False)
        added.add_argument("study", nargs=optional, help="name of a file in params/, or a path that ends in .yaml")
        added.add_argument("--pair", default="", help="default: the study's first")
        added.add_argument("--technique", default="", choices=names, help="default: slt")
        added.add_argument("--sparsity", type=float, default=0.0, help="a level; default: 0, the dense model")
        added.add_argument("--seed", type=int, default=1, help="default: 1")
        if function is translate:
            added.add_argument("--model", metavar="FOLDER", help="an exported model, instead of a study")
    added.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new folder")
    added.add_argument("--ticket", action="store_true", help="mask and initial weights instead of trained ones")
    text = "default: slt, sparse; ctranslate2: dense, for serving"
    added.add_argument("--format", choices=("slt", "ctranslate2"), default="slt", help=text)
    text = "type of the kept weights; default: fp32; bf16 takes half the size"
    added.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help=text)
    added = command(report)
    text = "also write plot, BLEU and a few sentences into FILE, between its two marker lines"
    added.add_argument("--into", metavar="FILE", help=text)
    added.add_argument("--html", action="store_true", help="only make report.html from the notebook report.ipynb")
    text = "allow --into also with rows from uncommitted code; the text says so"
    added.add_argument("--allow-dirty", action="store_true", help=text)
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        options.function(options)
    except InputError as error:
        rank = os.environ.get("RANK", "0")  # set by torchrun
        if rank != "0":  # rank 0 prints an error that all ranks have; torchrun then ends this process
            time.sleep(AFTER_THE_FIRST)
            error = f"process {rank}: {error}"
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
