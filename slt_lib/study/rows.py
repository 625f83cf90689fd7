"""What notebooks measure and add to a figures folder: numbers kept in the store, and rows of CSV files."""

from collections.abc import Callable, Sequence
from typing import Any

from slt_lib.base.store import digest, recall, remember
from slt_lib.report.data import read_rows, write_csv
from slt_lib.study.opening import Opened
from slt_lib.study.results import describe, figures


def remembered(study: Opened, folder: str, name: str, key: Sequence, compute: Callable[[], Any]) -> Any:
    """The value of `compute`, kept as `name` in a file of the store's `folder` that is named by `key`."""
    path = study.store.path / folder / f"{digest(key)[:32]}.json"
    if (stored := recall(path, name)) is None:
        with study.threads():
            stored = {name: compute()}
        remember(path, stored)
    return stored[name]


def replace(
    study: Opened, file: str, columns: Sequence[str], rows: list[list], same: int, order: Callable | None = None
) -> None:
    """Add rows, as text, to a CSV file of the figures folder, sorted by `order`.

    They replace the rows that have the same first `same` cells: the pair, then the seed. With `same` 1 all rows of the
    study's pair are replaced, with `same` 2 those of its chosen seeds, also if `rows` is empty.
    """
    describe(study)
    path = figures(study.name) / file
    rows = [["" if value is None else str(value) for value in row] for row in rows]
    own = [[study.pair], *([study.pair, str(seed)] for seed in study.seeds)]
    replaced = {tuple(row[:same]) for row in [*own, *rows]}
    with study.store.lock(f"rows-{digest(str(path))[:16]}"):
        rows += [row for row in read_rows(path, columns).values.tolist() if tuple(row[:same]) not in replaced]
        write_csv(path, columns, sorted(rows, key=order))
