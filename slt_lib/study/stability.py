"""Loss and BLEU on the line between copies of one ticket: the comparison `stability`, written to stability.csv."""

import itertools
from collections.abc import Iterable

from slt_lib.analysis import connectivity
from slt_lib.base.devices import device
from slt_lib.report.stability import COLUMNS, FILE
from slt_lib.study.rows import remembered, replace
from slt_lib.study.runs import Run
from slt_lib.study.study import Chain, Study
from slt_lib.train import loop

POINTS = 11  # on each line, its two ends among them


def record_stability(study: Study, chains: Iterable[Chain], points: int = POINTS) -> None:
    """Measure the lines between the copies that `techniques.stability` trained, and add them to stability.csv.

    Loss (nats per token) on the whole dev set, BLEU on the part that trainings are scored on. A line is measured once
    and kept in the store. Rows of the same pair, seed and start are replaced.
    """
    replace(study, FILE, COLUMNS, [row for chain in chains for row in _rows(study, chain, points)], same=3)


def _rows(study: Study, chain: Chain, points: int) -> list[list[str]]:
    ticket, rows = chain.runs[-1].ticket, []
    copies = [run for run in chain.runs if run.record["status"] == "ok" and run.ticket.operations == ticket.operations]
    start = ticket.trained_with if ticket.sparsity else ("theta_t" if ticket.depth else "theta_0")
    about = [study.pair, str(chain.seed), start, f"{ticket.sparsity:g}"]
    for one, other in itertools.combinations(copies, 2):
        for share, loss, bleu in _line(study, one, other, points):
            names = [f"{one.ticket.noise}-{other.ticket.noise}", f"{share:.4f}", f"{loss:.5f}", f"{bleu:.3f}"]
            rows.append([*about, *names, f"{one.id} {other.id}"])
    return rows


def _line(study: Study, one: Run, other: Run, points: int) -> list[list[float]]:
    """Share, loss and dev BLEU at each of the points."""

    def compute() -> list[list[float]]:
        model, data, line = study.model().to(device()), study.data, []
        targets = study.vocabulary.encode(data.dev_reference).lists()
        ends = one.weights(), other.weights()
        for share in (i / (points - 1) for i in range(points)):
            model.load_state_dict(connectivity.between(*ends, share))
            loss = connectivity.loss(model, data.dev_source.lists(), targets)
            line.append([share, loss, loop.dev_bleu(model, data, study.params.training)])
        return line

    key = [one.id, one.weights_hash, other.id, other.weights_hash, points]
    return remembered(study, "stability", "line", key, compute)
