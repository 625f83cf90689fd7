"""JoeyNMT 2.3.0 through its own command line, in its own environment, on the same word pieces as ours.

Its files contain our word pieces as words, and its vocabulary is the list of them. So its sentences have the same ids:
it needs no subword model and counts the same target tokens. Model, dropout, batch and label smoothing are the study's.
The optimizer is Adam with the study's peak rate for Adam. Everything else is JoeyNMT's default.
"""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Iterable
from pathlib import Path

import yaml

from benchmarks.setting import ROOT, Setting
from slt_lib.data.vocabulary import SPECIAL, Vocabulary
from slt_lib.evaluation import scoring
from slt_lib.transformer import EOS

REQUIREMENTS = Path(__file__).with_name("joeynmt") / "requirements.txt"
LOG_EVERY = 5
UNKNOWN = "<unk>"
RATE = re.compile(r"Tokens per Sec: +(\d+)")
TAKEN = re.compile(r"Generation took ([\d.]+)\[sec\]")


def environment() -> Path | None:
    """JoeyNMT's Python, installed on first use. None if BENCH_JOEYNMT is 0 or the install fails, which is printed."""
    if os.environ.get("BENCH_JOEYNMT") == "0":
        return None
    folder = Path(os.environ.get("SLT_BUILD") or ROOT / "build").absolute() / "joeynmt"
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"installing JoeyNMT into {os.path.relpath(folder)}", file=sys.stderr, flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # torch is large, so packages that JoeyNMT's environment lacks come from the study's own
        path = folder / "lib" / version / "site-packages" / "study.pth"
        path.write_text(sysconfig.get_path("purelib") + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS]
        subprocess.run(pip, check=True)
        subprocess.run([python, "-c", "import joeynmt.training"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"JoeyNMT can't be installed here ({error}); going on without it", file=sys.stderr, flush=True)
        return None
    ready.write_text(wanted)
    return python


def pieces(vocabulary: Vocabulary) -> list[str]:
    """Our word pieces in the order of their ids, without the special ones: JoeyNMT adds its own four."""
    return [_word(vocabulary, i) for i in range(len(SPECIAL), len(vocabulary))]


def _word(vocabulary: Vocabulary, i: int) -> str:
    """A word piece as a word for JoeyNMT, which reads files with `str.splitlines`."""
    piece = vocabulary.tokenizer.id_to_token(i)
    return piece if i >= len(SPECIAL) and not piece.isspace() and len(piece.splitlines()) == 1 else UNKNOWN


def text(vocabulary: Vocabulary, lines: Iterable[str]) -> list[str]:
    """Sentences as our word pieces, separated by spaces."""
    words = [_word(vocabulary, i) for i in range(len(vocabulary))]
    return [" ".join(words[i] for i in ids if i != EOS) for ids in vocabulary.encode(list(lines)).lists()]


def joined(vocabulary: Vocabulary, lines: Iterable[str]) -> list[str]:
    """The text of translations that JoeyNMT wrote as word pieces separated by spaces."""
    ids = {word: i for i, word in enumerate(pieces(vocabulary), start=len(SPECIAL)) if word != UNKNOWN}
    return vocabulary.decode([[ids[word] for word in line.split(" ") if word in ids] for line in lines])


def write_data(setting: Setting) -> Path:
    """The folder with the corpus in JoeyNMT's format; written once."""
    folder, study = setting.folder / "data" / setting.study.corpus.digest[:16], setting.study
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        first = next(iter(study.corpus.tests.values()))
        for name, split in {"train": study.corpus.train, "dev": study.corpus.dev, "test": first}.items():
            for language, side in zip(study.corpus.languages, (split.source, split.target), strict=True):
                lines = text(study.vocabulary, side)
                (folder / f"{name}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        words = "".join(f"{piece}\n" for piece in dict.fromkeys(pieces(study.vocabulary)))
        (folder / "pieces.txt").write_text(words, encoding="utf-8")
        (folder / "done").touch()
    return folder


def config(setting: Setting, name: str, steps: int, testing: dict | None = None) -> Path:
    """A config file for the study's model. With `testing` it names only the test set."""
    study, data = setting.study, write_data(setting)
    training, sizes = study.params.training, study.params.training.model
    sides = {
        side: {"lang": language, "level": "word", "voc_file": str(data / "pieces.txt")}
        | ({"max_length": training.batch.length - 1} if not testing else {})
        for side, language in zip(("src", "trg"), study.corpus.languages, strict=True)
    }
    splits = ("test",) if testing else ("train", "dev")
    embeddings = {"embedding_dim": sizes.hidden, "scale": True, "dropout": sizes.residual_dropout}
    stack = {
        "type": "transformer",
        "num_layers": sizes.layers,
        "num_heads": sizes.heads,
        "embeddings": embeddings,
        "hidden_size": sizes.hidden,
        "ff_size": sizes.filter,
        "dropout": sizes.residual_dropout,
        "layer_norm": "pre",
        "activation": "relu",
    }
    settings = {
        "name": name,
        "joeynmt_version": "2.3.0",
        "model_dir": str(setting.folder / "joeynmt" / name),
        "use_cuda": False,
        "random_seed": 1,
        "data": {split: str(data / split) for split in splits} | {"dataset_type": "plain"} | sides,
        "training": {
            "optimizer": "adam",
            "adam_betas": [0.9, 0.98],
            "learning_rate": training.peak_lr.adam,
            "learning_rate_min": 1.0e-9,
            "scheduling": "warmupinversesquareroot",
            "learning_rate_warmup": max(1, steps // 10),
            "label_smoothing": training.label_smoothing,
            "normalization": "tokens",
            "batch_type": "token",
            "batch_size": training.batch.rows * training.batch.length,
            "epochs": 1_000_000,
            "updates": steps,
            "logging_freq": LOG_EVERY,
            "validation_freq": LOG_EVERY * steps,  # never: only the speed and the last weights are used
            "print_valid_sents": [],
            "overwrite": True,
        },
        "testing": {"batch_size": 64, "batch_type": "sentence"} | (testing or {}),
        "model": {
            "initializer": "xavier_uniform",
            "bias_initializer": "zeros",
            "embed_initializer": "xavier_uniform",
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": stack,
            "decoder": stack,
        },
    }
    path = setting.folder / "joeynmt" / f"{name}.{'test' if testing else 'train'}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(python: Path, arguments: list, threads: int) -> subprocess.Popen:
    """Start a command of JoeyNMT with its log piped."""
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [python, "-m", "joeynmt", *map(str, arguments)],
        env=outside | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(python: Path, arguments: list, threads: int) -> str:
    """The whole log of a command. Raises RuntimeError with the end of the log if the command fails."""
    process = start(python, arguments, threads)
    log, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"joeynmt {arguments[0]} ended with {process.returncode}:\n{log[-2000:]}")
    return log


def rate(python: Path, setting: Setting, threads: int, seconds: float, at_once: int = 1) -> float:
    """Target tokens per second of `at_once` trainings together, from their logs; padding is not counted.

    The first line of a log, the warm-up, is skipped.
    """
    files = [config(setting, f"rate{i}", 1_000_000) for i in range(at_once)]
    found: list[list[float]] = [[] for _ in files]

    def follow(process: subprocess.Popen, rates: list[float]) -> None:
        began = None
        for line in process.stdout:
            if match := RATE.search(line):
                if began is None:
                    began = time.monotonic()
                    continue
                rates.append(float(match[1]))
                if time.monotonic() - began >= seconds:
                    break
        process.terminate()
        process.wait()

    processes = [start(python, ["train", file, "--skip-test"], threads) for file in files]
    readers = [threading.Thread(target=follow, args=pair) for pair in zip(processes, found, strict=True)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if not all(found):
        raise RuntimeError("joeynmt train ended without a line of its speed")
    return sum(sum(rates) / len(rates) for rates in found)


def train(python: Path, setting: Setting, threads: int) -> Path:
    """Checkpoint of a model trained for `setting.steps` updates; it is trained once."""
    name = f"{setting.study.corpus.digest[:8]}-{setting.steps}"
    checkpoint = setting.folder / "joeynmt" / name / f"{setting.steps}.ckpt"
    if not checkpoint.exists():
        run(python, ["train", config(setting, name, setting.steps), "--skip-test"], threads)
    return checkpoint


def decode(python: Path, setting: Setting, checkpoint: Path, threads: int, beam: int, size: int) -> dict:
    """Sentences per second on the first test set by JoeyNMT's clock (search only), BLEU, and pieces per translation."""
    study = setting.study
    testing = {"load_model": str(checkpoint), "batch_size": size, "beam_size": beam, "eval_metrics": []}
    if beam > 1:
        testing["beam_alpha"] = study.params.decoding.alpha
    file = config(setting, checkpoint.parent.name, setting.steps, testing)
    out = setting.folder / "joeynmt" / "out"
    log = run(python, ["test", file, "--output-path", out], threads)
    lines = Path(f"{out}.test").read_text(encoding="utf-8").split("\n")
    split = next(iter(study.corpus.tests.values()))
    lines = lines[: len(split)]
    return {
        "rate": len(split) / float(TAKEN.findall(log)[-1]),
        "bleu": scoring.bleu(joined(study.vocabulary, lines), list(split.target)),
        "pieces": sum(len(line.split(" ")) for line in lines) / len(lines),
    }
