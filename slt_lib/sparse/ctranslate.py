"""A model in the format of CTranslate2, which serves dense models quickly. Its weights are stored dense there.

Every tensor of the architecture has its place (https://opennmt.net/CTranslate2). Two differences remain: the search of
CTranslate2 divides by length ** alpha, where tensor2tensor divides by ((5 + length) / 6) ** alpha, so that beam search
can choose another translation; and equal scores may be ordered differently.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from torch import Tensor

from slt_lib.data.vocabulary import Vocabulary
from slt_lib.sparse.engine import inside
from slt_lib.transformer import EOS, PAD, UNKNOWN, Shape, positions

LONGEST = 1024  # positions, of source and translation


def save(path: Path, shape: Shape, weights: Mapping[str, Tensor], vocabulary: Vocabulary) -> Path:
    """Write a folder for `ctranslate2.Translator`; tokens are those of tokenizer.json, written beside it.

    A source ends with the token "</s>", as `Vocabulary.encode` gives it.
    """
    arrays = {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}
    spec = transformer_spec.TransformerSpec.from_config(shape.layers, shape.heads, pre_norm=True)
    encoder, decoder = spec.encoder, spec.decoder
    embedding = arrays["embedding"].copy()
    embedding[PAD] = 0  # the decoder starts from a zero vector
    table = positions(LONGEST, shape.hidden).numpy()
    encoder.embeddings[0].weight = decoder.embeddings.weight = embedding
    encoder.scale_embeddings = decoder.scale_embeddings = True
    encoder.position_encodings.encodings = table + arrays["target_space"][0]
    decoder.position_encodings.encodings = table
    decoder.projection.weight = arrays["embedding"]
    decoder.projection.bias = np.zeros(shape.vocabulary, np.float32)
    for side, part in (("encoder", encoder), ("decoder", decoder)):
        _norm(part.layer_norm, arrays, f"{side}_norm")
        for i, layer in enumerate(part.layer):
            _layer(layer, inside(arrays, f"{side}.{i}"))
    tokens = [vocabulary.tokenizer.id_to_token(i) for i in range(len(vocabulary))]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    config = spec.config
    config.bos_token = config.decoder_start_token = tokens[PAD]
    config.eos_token, config.unk_token = tokens[EOS], tokens[UNKNOWN]
    config.add_source_bos = config.add_source_eos = False
    config.layer_norm_epsilon = 1e-6
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    spec.validate()
    spec.save(str(path))
    (path / "tokenizer.json").write_text(vocabulary.text, encoding="utf-8")
    return path


def _layer(layer, arrays: Mapping[str, np.ndarray]) -> None:
    _attention(layer.self_attention.linear, arrays, "self_attention", [("query", "key", "value"), ("output",)])
    _norm(layer.self_attention.layer_norm, arrays, "self_norm")
    if "cross_norm.weight" in arrays:
        _attention(layer.attention.linear, arrays, "cross_attention", [("query",), ("key", "value"), ("output",)])
        _norm(layer.attention.layer_norm, arrays, "cross_norm")
    _norm(layer.ffn.layer_norm, arrays, "filter_norm")
    _linear(layer.ffn.linear_0, arrays["feed_forward.inner"], arrays["feed_forward.inner_bias"])
    _linear(layer.ffn.linear_1, arrays["feed_forward.outer"], arrays["feed_forward.outer_bias"])


def _attention(linear, arrays: Mapping[str, np.ndarray], part: str, groups: list[tuple[str, ...]]) -> None:
    for each, names in zip(linear, groups, strict=True):
        matrix = np.concatenate([arrays[f"{part}.{name}"] for name in names])
        _linear(each, matrix, np.zeros(len(matrix), np.float32))


def _linear(linear: common_spec.LinearSpec, matrix: np.ndarray, bias: np.ndarray) -> None:
    linear.weight, linear.bias = matrix, bias


def _norm(norm: common_spec.LayerNormSpec, arrays: Mapping[str, np.ndarray], name: str) -> None:
    norm.gamma, norm.beta = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
