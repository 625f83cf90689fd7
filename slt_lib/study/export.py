"""Export a trained run, or the ticket that it was trained from, as a folder that stands alone (`sparse.files`)."""

from pathlib import Path

from slt_lib import memory
from slt_lib.base.errors import InputError
from slt_lib.report.data import label, percent
from slt_lib.sparse import files
from slt_lib.study.operations import Theta0
from slt_lib.study.runs import Run
from slt_lib.study.scores import scores
from slt_lib.transformer import prunable


def export(run: Run, path: Path, technique: str, format: str = "slt", dtype: str = "fp32") -> str:
    """Write the best checkpoint of a run to the folder `path`; returns a line about its size.

    `format`: "slt" keeps the weights sparse; "ctranslate2" is for serving, with dense weights. `dtype`: see
    `files.save`. Raises InputError if the run has failed, or if the folder has other files already.
    """
    _must_be_free(path)
    study, weights = run.study, run.weights("best")
    if format == "ctranslate2":
        from slt_lib.sparse import ctranslate  # loads a library of 100 MB

        ctranslate.save(path, study.shape, weights, study.vocabulary)
        return f"{path}: {_size(path)}, dense, for ctranslate2.Translator"
    about = _about(run, technique) | {"kind": "model"}
    card = _card(about, run, "python -m slt_lib translate --model THIS_FOLDER", "a translation model")
    files.save(path, study.shape, weights, run.mask, study.vocabulary.text, card, about, dtype)
    matrices = prunable(weights)
    sizes = {"dense": memory.dense_bytes(matrices), "CSC": memory.csc_bytes(matrices)}
    sizes["compressed CSC (the paper's)"] = memory.compressed_csc_bytes(matrices)
    beside = ", ".join(f"{name} {size / memory.MIB:.2f} MiB" for name, size in sizes.items())
    return f"{path}: {_size(path, files.ARRAYS)} of weights; the pruned matrices as {beside}"


def export_ticket(run: Run, path: Path, technique: str) -> str:
    """Write the ticket of a run: its mask, and its initial weights unless they are theta_0 of the seed.

    `Study.ticket_from` reads it. Raises InputError as `export` does, and for a run of a dense model.
    """
    _must_be_free(path)
    study, ticket = run.study, run.ticket
    start = ticket.start()
    if start.mask is None:
        raise InputError(
            f"run {run.id[:12]} starts without a mask, which is no ticket; choose a technique that rewinds"
        )
    own = ticket.operations[0] == Theta0() and not any(operation.sets_weights for operation in ticket.operations[1:])
    about = _about(run, technique) | {"kind": "ticket", "start": "theta_0" if own else "weights"}
    about |= {"gradual": start.gradual, "optimizer": start.optimizer, "pruning": sorted(run.ticket.pruning)}
    card = _card(about, run, 'study.train([study.ticket_from("THIS_FOLDER")])', "a lottery ticket")
    files.save(path, study.shape, None if own else start.weights, start.mask, study.vocabulary.text, card, about)
    return f"{path}: {_size(path, files.ARRAYS)}, " + ("theta_0 follows from the seed" if own else "mask and weights")


def _about(run: Run, technique: str) -> dict:
    """The keys of config.json that say where the weights come from and how to translate."""
    study = run.study
    return {
        "study": study.name,
        "pair": study.pair,
        "technique": technique,
        "sparsity": run.sparsity,
        "seed": run.ticket.seed,
        "run": run.id,
        "decoding": study.params.decoding.model_dump(),
    }


def _card(about: dict, run: Run, use: str, kind: str) -> str:
    """The model card in Markdown."""
    found, study = scores(run), run.study
    whose = "after training" if about["kind"] == "ticket" else "of the model"
    rows = [f"| {name} | {score['bleu']:.1f} | {score['ter']:.1f} |" for name, score in found.items()]
    signatures = next(iter(found.values()))["signatures"]
    return "\n".join(
        [
            f"# {label(about['technique'])} at {percent(about['sparsity'])}% sparsity, {about['pair']}: {kind}",
            "",
            f"Study `{about['study']}`, seed {about['seed']}, run `{about['run']}`;",
            f"{len(study.vocabulary):,} word pieces; trained on the corpus {study.corpus.name}.",
            f"Scores {whose}, at the best checkpoint on dev:",
            "",
            "| test set | BLEU | TER |",
            "|---|---|---|",
            *rows,
            "",
            *(f"{name}: `{signature}`  " for name, signature in signatures.items()),
            "",
            "Use it with the library slt_lib:",
            "",
            f"    {use}",
            "",
            "Files: `model.safetensors` (arrays by name), `config.json` (sizes, form of each matrix, checksums) and",
            "`tokenizer.json` (for the library tokenizers). None contains code. The license is that of slt_lib; the",
            "terms of the training corpus also apply.",
            "",
        ]
    )


def _must_be_free(path: Path) -> None:
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty folder; name another one")


def _size(path: Path, name: str = "*") -> str:
    return f"{sum(file.stat().st_size for file in Path(path).glob(name)) / memory.MIB:.2f} MiB"
