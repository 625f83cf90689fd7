"""The CSV files that notebooks add to a figures folder, as text or with numbers."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from slt_lib.report.data import read_text


def read(path: str | os.PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a file as text; no rows where there is no such file. Raises InputError if it is malformed."""
    there = Path(path).is_file()
    return read_text(Path(path), columns)[[*columns]] if there else pd.DataFrame(columns=[*columns], dtype=object)


def numbers(path: str | os.PathLike, columns: Sequence[str], pair: str, text: Collection[str]) -> pd.DataFrame:
    """The rows of a pair; all columns but `text` are numbers, an empty cell is nan."""
    frame = read(path, columns)
    frame = frame[frame.pair == pair]
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in columns if name not in text})
