"""The paper's techniques, each a generator of tickets: section 3 in a few lines (FACTS.md section 7)."""

from slt_lib.study import Recipe, Study


def dense(study: Study, seed: int, levels: list[float], optimizer: str = "") -> Recipe:
    """The dense Transformer from theta_0: every chain's first run."""
    yield study.ticket(seed, optimizer)


def mp(study: Study, seed: int, levels: list[float], optimizer: str = "") -> Recipe:
    """Magnitude pruning (section 3.1): one training a level, from theta_0, pruned gradually while it trains."""
    yield [study.ticket(seed, optimizer).gradual(final=sparsity) for sparsity in levels]


def slt(
    study: Study, seed: int, levels: list[float], rewind: float = 0.05, source: str = "last", checkpoint: str = "final"
) -> Recipe:
    """Stabilized lottery ticket (section 3.3): prune by theta_T, restart from theta_t of the last run."""
    run = yield study.ticket(seed)
    for sparsity in levels:
        run = yield run.rewind(at=rewind, source=source).prune(by=run, sparsity=sparsity, checkpoint=checkpoint)
