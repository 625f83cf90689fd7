"""Exported models and tickets: a folder of plain files that is read without the study, the store or pickle.

    model.safetensors   arrays by name: "<matrix>.values", its places (see `packing`), and vectors as they are
    config.json         format and version, sizes, the form of each matrix, checksums, settings of the search
    tokenizer.json      the vocabulary, in the format of the library tokenizers
    README.md           the model card

A ticket is the same, except that its values may be missing: theta_0 follows from the seed in config.json.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.data.vocabulary import Vocabulary
from slt_lib.evaluation import decoding
from slt_lib.sparse import packing
from slt_lib.sparse.engine import Engine
from slt_lib.transformer import Shape, Transformer

FORMAT, VERSION = "slt-sparse", 1
ARRAYS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What a folder holds.

    weights: name -> float32 tensor, pruned entries zero; None for a ticket that starts from theta_0.
    mask: name of each pruned matrix -> BoolTensor, True = kept; empty for a dense model.
    config: the content of config.json.
    """

    path: Path
    shape: Shape
    weights: dict[str, Tensor] | None
    mask: dict[str, Tensor]
    vocabulary: Vocabulary
    config: dict

    @functools.cached_property
    def engine(self) -> Engine:
        """The model, ready to translate. Raises InputError for a ticket."""
        if self.config.get("kind") == "ticket":
            raise InputError(f"{self.path / CONFIG}: a ticket is not trained; train it with `Study.ticket_from`")
        return Engine(self.shape, self.weights)

    def translate(self, sentences: Sequence[str], **options) -> list[str]:
        """Translate raw sentences; `options` of `decoding.translate` replace those of the study."""
        settings = self.config["decoding"] | options
        found = decoding.translate(self.engine, self.vocabulary.encode(sentences).lists(), **settings)
        return self.vocabulary.decode(found)


def save(
    path: Path,
    shape: Shape,
    weights: Mapping[str, Tensor] | None,
    mask: Mapping[str, Tensor] | None,
    vocabulary: str,
    card: str,
    more: Mapping[str, object],
    dtype: str = "fp32",
) -> Path:
    """Write a folder; config.json comes last, so that a folder without one is not complete.

    `weights` None: only the mask is written. `vocabulary`: the JSON of the tokenizer. `more`: further keys of
    config.json. `dtype`: "fp32", which loads exactly, or "bf16", which rounds matrices to 8 bits of precision. Raises
    InputError if a file cannot be written.
    """
    tensors, matrices = {}, {}
    for name, kept in (mask or {}).items():
        form, places = packing.pack(kept.cpu().numpy())
        matrices[name] = {"shape": list(kept.shape), "form": form}
        tensors[f"{name}.{form}"] = torch.from_numpy(places)
        if weights is not None:
            tensors[f"{name}.values"] = weights[name].cpu()[kept.cpu()].to(DTYPES[dtype])
    for name, weight in (weights or {}).items():
        if name not in matrices:
            tensors[name] = weight.cpu().to(DTYPES[dtype] if weight.dim() == 2 else torch.float32).contiguous()
    path = Path(path)
    files = {
        ARRAYS: safetensors.torch.save(tensors, {"format": f"{FORMAT} {VERSION}"}),
        TOKENIZER: vocabulary.encode(),
        CARD: card.encode(),
    }
    config = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": dtype,
        "shape": asdict(shape),
        "matrices": matrices,
        **more,
    }
    config["sha256"] = {name: write_bytes(path / name, content) for name, content in files.items() if name != CARD}
    write_bytes(path / CARD, files[CARD])
    write_bytes(path / CONFIG, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    return path


def load(path: Path) -> Exported:
    """Read a folder that `save` wrote.

    Raises InputError, in one line, for a missing or damaged file, another version, or a matrix of another shape.
    """
    path = Path(path)
    config = _config(path)
    content = {name: _checked(path / name, digest) for name, digest in config["sha256"].items()}
    try:
        shape = Shape(**config["shape"])
        tensors = safetensors.torch.load(content[ARRAYS])
        vocabulary = Vocabulary(content[TOKENIZER].decode())
        mask = {}
        for name, about in config["matrices"].items():
            places = tensors.pop(f"{name}.{about['form']}").numpy()
            kept = packing.unpack(about["form"], places, math.prod(about["shape"]))
            mask[name] = torch.from_numpy(kept).reshape(about["shape"])
            if f"{name}.values" in tensors:
                matrix = torch.zeros(about["shape"])
                matrix[mask[name]] = tensors.pop(f"{name}.values").float()
                tensors[name] = matrix
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path / CONFIG}: does not describe {ARRAYS} ({error}); export it again") from None
    weights = {name: tensor.float() for name, tensor in tensors.items()} or None
    _check_shapes(path, shape, weights, mask)
    return Exported(path, shape, weights, mask, vocabulary, config)


def published(folder: Path) -> Exported | None:
    """The exported model in the first of the folders in `folder` that holds one, not a ticket; None without one.

    Raises InputError as `load` does.
    """
    for file in sorted(Path(folder).glob(f"*/{CONFIG}")):
        if _config(file.parent).get("kind") == "model":
            return load(file.parent)
    return None


def _config(path: Path) -> dict:
    file = path / CONFIG
    try:
        config = json.loads(file.read_bytes())
        found = config["format"], config["version"]
        complete = {"sha256", "matrices", "shape"} <= config.keys() and {ARRAYS, TOKENIZER} <= config["sha256"].keys()
    except FileNotFoundError:
        raise InputError(f"{file}: not found; name a folder that `python -m slt_lib export` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: not the configuration of an exported model; export it again") from None
    if found != (FORMAT, VERSION):
        raise InputError(f"{file}: format {found[0]} {found[1]}, this code reads {FORMAT} {VERSION}; export it again")
    if not complete:
        raise InputError(f"{file}: incomplete; export it again")
    return config


def _checked(file: Path, digest: str) -> bytes:
    """The content of a file whose SHA-256 is `digest`."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; export it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{file}: damaged (its checksum differs from the one in {CONFIG}); export it again")
    return content


def _check_shapes(path: Path, shape: Shape, weights: Mapping | None, mask: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in Transformer(shape).named_parameters()}
    for name, tensor in {**mask, **(weights or {})}.items():
        if tuple(tensor.shape) != expected.get(name):
            raise InputError(
                f"{path / ARRAYS}: {name} is {tuple(tensor.shape)}, not {expected.get(name)}; export it again"
            )
    if weights is not None and weights.keys() != expected.keys():
        missing = ", ".join(sorted(expected.keys() - weights.keys()))
        raise InputError(f"{path / ARRAYS}: without {missing}; export it again")
