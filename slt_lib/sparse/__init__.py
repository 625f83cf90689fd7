"""Sparse models: small on disk, fast to run. Takes weights, masks and sentences, not runs."""

from slt_lib.sparse.files import load, published
