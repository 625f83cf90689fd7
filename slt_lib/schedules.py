"""Learning rate, gradual sparsity and the paper's levels: pure functions of the step."""

PAPER_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


def learning_rate(step: int, warmup_steps: int, peak: float | None = None, ramp: bool = False) -> float:
    """peak * sqrt(warmup / max(step, warmup)): a plateau, then the inverse square root.

    `step` counts from 0; `peak=None` means warmup ** -0.5, T2T's rsqrt_decay: 0.01 at 10,000 warm-up steps. With `ramp`
    the plateau is replaced by a linear rise, as T2T does for Adam. The paper prints the formula without the square
    root (FACTS.md section 2). Raises ValueError for a warm-up below one step.
    """
    if warmup_steps < 1:
        raise ValueError(f"warm-up of {warmup_steps} steps: at least 1 is needed")
    rate = (warmup_steps**-0.5 if peak is None else peak) * (warmup_steps / max(step, warmup_steps)) ** 0.5
    return rate * min(1.0, (step + 1) / warmup_steps) if ramp else rate


def gradual_sparsity(step: int, initial: float, final: float, end_step: int) -> float:
    """s_t = s_T + (s_0 - s_T) * (1 - t / end)^3 until `end_step`, then `final`; before step 0 it is `initial`.

    Sparsities are fractions; `step` counts finished steps. Raises ValueError unless 0 <= initial <= final <= 1. Source:
    paper section 3.1; FACTS.md section 3.
    """
    if not 0 <= initial <= final <= 1:
        raise ValueError(f"gradual sparsity from {initial} to {final}: both from 0 to 1, and rising")
    left = 1 - min(max(step, 0) / end_step, 1) if end_step > 0 else float(step < 0)
    return final + (initial - final) * left**3


def at_step(fraction: float, steps: int) -> int:
    """The step at a fraction of a training; exact halves round to even, as Python does."""
    return round(fraction * steps)


def every(fraction: float, until: float, steps: int) -> list[int]:
    """The steps at fraction, 2 * fraction, ... and `until`, sorted, each once, without step 0."""
    count = int(until / fraction + 1e-9)
    marks = {at_step(min(i * fraction, until), steps) for i in range(1, count + 1)}
    return sorted((marks | {at_step(until, steps)}) - {0})
