"""The paper's six techniques, each a generator of tickets: section 3 of the paper in a few lines (FACTS.md section 7).

A recipe yields a ticket, or a list of independent tickets, and receives the trained run, or the list of runs. Its
arguments are a `study.Study`, an integer `seed`, and `levels`, the target sparsities in increasing order. All further
arguments are knobs: the defaults are the paper's setting, and the ablations are the same recipes with other values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slt_lib.base.settings import REWIND, REWIND_POINTS, TECHNIQUES
from slt_lib.study import Chain, Recipe, Study
from slt_lib.study.subnetworks import SUBNETWORKS, pruned_ticket
from slt_lib.study.tickets import check_choice


def dense(study, seed, levels=(), optimizer="") -> Recipe:
    """The dense Transformer, trained from theta_0: the first run of most chains."""
    yield study.ticket(seed, optimizer)


def mp(study, seed, levels, optimizer="") -> Recipe:
    """Magnitude pruning (section 3.1): one training per level from theta_0, pruned gradually during the training."""
    yield [study.ticket(seed, optimizer).gradual(final=sparsity) for sparsity in levels]


def lt(study, seed, levels, checkpoint="final") -> Recipe:
    """Lottery ticket (section 3.2): prune by theta_T, restart from theta_0, level after level."""
    run = yield study.ticket(seed)
    for sparsity in levels:
        run = yield run.rewind(at=0).prune(by=run, sparsity=sparsity, checkpoint=checkpoint)


def slt(
    study,
    seed,
    levels,
    rewind=REWIND,
    source="last",
    checkpoint="final",
    optimizer="",
    iterative=True,
    scope="matrix",
    criterion="magnitude",
) -> Recipe:
    """Stabilized lottery ticket (section 3.3): prune by theta_T, restart from theta_t of the last run.

    Without `iterative` each level is pruned directly from the dense run. `scope`, `criterion`: see `Ticket.prune`.
    """
    how = {"checkpoint": checkpoint, "scope": scope, "criterion": criterion}
    run = yield study.ticket(seed, optimizer)
    if not iterative:
        yield [run.rewind(at=rewind).prune(by=run, sparsity=sparsity, **how) for sparsity in levels]
        return
    for sparsity in levels:
        run = yield run.rewind(at=rewind, source=source).prune(by=run, sparsity=sparsity, **how)


def clt(study, seed, levels, rewind=REWIND, source="last") -> Recipe:
    """Constant lottery ticket (section 3.4): as SLT, but theta_t is replaced by alpha times its signs."""
    run = yield study.ticket(seed)
    for sparsity in levels:
        run = yield run.rewind(at=rewind, source=source).prune(by=run, sparsity=sparsity).constant()


def slt_mp(
    study, seed, levels, rewind=REWIND, source="last", first=0.5, switch=0.6, start="first", stepwise=False
) -> Recipe:
    """SLT to 60%, then MP (section 3.5): the ticket at `switch` is pruned further during its training.

    SLT prunes directly to `first`, with `stepwise` in steps of ten points. `start`: MP replaces the training of the
    ticket at `switch` ("first") or follows it ("second"). Raises InputError for another `start`. Source: FACTS.md
    section 7, SLT-MP 4.
    """
    check_choice("start", start, ("first", "second"))
    run = yield study.ticket(seed)
    path = [round(0.1 * i, 1) for i in range(1, 10) if 0.1 * i < first - 1e-9] if stepwise else []
    for sparsity in path:
        run = yield run.rewind(at=rewind, source=source).prune(by=run, sparsity=sparsity).unlisted()
    run = yield run.rewind(at=rewind, source=source).prune(by=run, sparsity=first)
    ticket = run.rewind(at=rewind, source=source).prune(by=run, sparsity=switch)
    if start == "second" or switch in levels:
        run = yield ticket
    if start == "second":
        ticket = run.rewind(at=rewind, source=source)
    yield [ticket.gradual(final=sparsity, initial=switch) for sparsity in levels if sparsity > switch]


def mp_slt(study, seed, levels, rewind=REWIND, switch=0.6, retrain=True) -> Recipe:
    """MP to 60%, then SLT (section 3.6): the first ticket is theta_t of the MP run under its final mask.

    With `retrain` that ticket is trained at `switch` before the next level is pruned; otherwise the mask of the next
    level comes from the MP run itself. Source: FACTS.md section 7, MP-SLT 3.
    """
    run = yield study.ticket(seed).gradual(final=switch).unlisted()  # a row of MP, if the study has the level
    if retrain:  # not in the paper's table, so unlisted
        run = yield run.rewind(at=rewind).prune(by=run, sparsity=switch).unlisted()
    for sparsity in [level for level in levels if level > switch]:
        run = yield run.rewind(at=rewind).prune(by=run, sparsity=sparsity)


# Controls ------------------------------------------------------------


def clt_control(study, seed, levels, at=0.5, signs="kept", magnitudes="constant", rewind=REWIND) -> Recipe:
    """The ticket of the CLT chain at the level `at`, with other signs or magnitudes under the same mask.

    The paper's ablation is `signs="random"`; Frankle et al. (2020) keep the signs and change the magnitudes. If `at` is
    not one of `levels`, it yields no control ticket.
    """
    run = yield study.ticket(seed)
    for sparsity in [level for level in levels if level <= at]:
        ticket = run.rewind(at=rewind).prune(by=run, sparsity=sparsity)
        if sparsity == at:
            yield ticket.constant(signs, magnitudes)
        else:
            run = yield ticket.constant().unlisted()


def slt_control(study, seed, levels, control, at=0.5, rewind=REWIND) -> Recipe:
    """SLT at the level `at` with random masks ("mask"), or with fresh weights under its own mask ("weights").

    Random masks are drawn at every level, so that the ticket is trained as often as that of SLT. "none" prunes nothing:
    the dense run is rewound to theta_t and trained again, once for each of `levels`, which shows the effect of the
    number of trainings alone. If `at` is not one of `levels`, "mask" and "weights" yield no control ticket. Raises
    InputError for another `control`.
    """
    check_choice("control", control, ("mask", "weights", "none"))
    run = yield study.ticket(seed)
    for sparsity in levels if control == "none" else [level for level in levels if level <= at]:
        ticket = run.rewind(at=rewind)
        if control == "none":
            run = yield ticket
            continue
        ticket = ticket.prune_randomly(sparsity) if control == "mask" else ticket.prune(by=run, sparsity=sparsity)
        if sparsity < at:
            run = yield ticket.unlisted()
        else:
            yield ticket.reinitialised() if control == "weights" else ticket


def stability(study, seed, levels, start="theta_0", copies=2, at=0.9, rewind=REWIND) -> Recipe:
    """Train one ticket `copies` + 1 times.

    Copy 0 has the study's own order of sentences and dropout; the others have different ones. `start`: "theta_0" or
    "theta_t" of the dense model, or the ticket of "lt" or "slt" at the level `at`. Raises InputError for another
    `start`. Source: Frankle et al. (2020), "Linear mode connectivity and the lottery ticket hypothesis", section 2.
    """
    check_choice("start", start, tuple(STABILITY))
    ticket = study.ticket(seed)
    if start != "theta_0":
        run = yield ticket
        ticket = run.rewind(at=rewind)
    for sparsity in [level for level in levels if level <= at] if start in ("lt", "slt") else []:
        ticket = run.rewind(at=rewind if start == "slt" else 0).prune(by=run, sparsity=sparsity)
        if sparsity < at:
            run = yield ticket.unlisted()
    yield [ticket.with_noise(copy) for copy in range(copies + 1)]


def subnetwork(
    study, seed, levels, pruning="structured", which="good", start="theta_t", draw=0, at=0.8, rewind=REWIND
) -> Recipe:
    """A subnetwork of the dense run, trained from theta_0 or theta_t of that run.

    `pruning`: "structured" removes whole heads and feed-forward units, as many as keep 90% of the dense run's BLEU on
    dev; "unstructured" prunes `at` of each matrix. `which`: "good", "random" (number `draw`) or "bad", of one size.
    Raises InputError for another name. Source: Prasanna, Rogers and Rumshisky (2020), section 4.
    """
    check_choice("start", start, ("theta_0", "theta_t"))
    run = yield study.ticket(seed)
    yield pruned_ticket(run.rewind(at=0 if start == "theta_0" else rewind), run, pruning, which, draw, at)


clt_control.technique = "clt"  # the controls are listed as variants of these techniques
slt_control.technique = "slt"
# The levels that a training depends on, if these are not all levels up to its own; see `Study.chain`.
mp.path = slt_mp.path = subnetwork.path = lambda levels, knobs: []
slt.path = lambda levels, knobs: levels if knobs["iterative"] else []
mp_slt.path = lambda levels, knobs: [level for level in levels if level > knobs["switch"]]

RECIPES = {recipe.__name__.replace("_", "-"): recipe for recipe in (dense, mp, lt, slt, clt, slt_mp, mp_slt)}

# Comparisons ------------------------------------------------------------

# `start` of a stability run -> technique and variant of its rows.
STABILITY = {"theta_0": ("dense", ""), "theta_t": ("slt", "control=none"), "lt": ("lt", ""), "slt": ("slt", "")}
ABLATION_LEVEL = 0.5  # level of the comparisons: the paper's random signs are at 50%
RANDOM = 3  # random subnetworks of each kind
ABLATIONS = ("signs", "rewind", "optimizer")  # the paper's, the default of notebook 08 and of `ablations: true`


@dataclass(frozen=True)
class Line:
    """One chain of a comparison: a recipe, its levels and its knobs.

    `label`: technique and variant of its rows, if not the recipe's. `scored`: the checkpoints that get a row each
    (`Run.weights`).
    """

    recipe: Callable[..., Recipe]
    levels: Sequence[float]
    knobs: dict = field(default_factory=dict)
    label: tuple[str, str] | None = None
    scored: tuple[str, ...] = ("best",)


def subnetworks(at: float = 0.8, draws: int = RANDOM) -> list[Line]:
    """Good, bad and `draws` random subnetworks, structured and unstructured (`at`), from theta_0 and from theta_t."""
    lines = []
    for technique, start in (("lt", "theta_0"), ("slt", "theta_t")):
        for pruning in ("structured", "unstructured"):
            for which in SUBNETWORKS:
                for draw in range(draws if which == "random" else 1):
                    name = f"{which}{draw + 1}" if which == "random" else which
                    knobs = {"pruning": pruning, "which": which, "start": start, "draw": draw, "at": at}
                    lines.append(Line(subnetwork, [at], knobs, (technique, f"subnetwork={pruning} {name}")))
    return lines


def comparisons(
    levels: Sequence[float],
    at: float = ABLATION_LEVEL,
    rewinds: Sequence[float] = REWIND_POINTS,
    switches: Sequence[float] = (0.5, 0.7),
    high: float = 0.9,
    techniques: Sequence[str] = tuple(TECHNIQUES),
) -> dict[str, list[Line]]:
    """Name of a comparison -> its lines, the default recipe first; notebook 08 explains each one.

    `levels` and `techniques` are the study's; most comparisons use the levels up to `at`. `high`: the second level of
    `controls`, and the level of the tickets of `stability`; if the study does not have it, the next lower level. The
    source of a rewind and one-shot pruning matter only from the second level on, and the knobs of SLT-MP only above its
    switch, so these are compared there if `at` is lower.
    """
    upto = [level for level in levels if level <= at]
    upto_high = [level for level in levels if level <= high] or list(levels[:1])
    high = upto_high[-1]
    second = upto if len(upto) > 1 else list(levels[:2])
    beyond = [level for level in levels if level > max(0.6, *switches)][:1] or list(levels[-1:])

    def each(recipe: Callable[..., Recipe], to: Sequence[float], *knobs: dict) -> list[Line]:
        return [Line(recipe, to, options) for options in ({}, *knobs)]

    def controls(level: float, to: Sequence[float]) -> list[Line]:
        return [Line(slt_control, to, {"control": kind, "at": level}) for kind in ("mask", "weights")]

    kinds = [("kept", "redrawn"), ("kept", "shuffled"), ("random", "constant"), ("random", "redrawn")]
    frankle = [Line(clt_control, upto, {"signs": signs, "magnitudes": kind, "at": at}) for signs, kind in kinds]
    starts = STABILITY.items()
    return {
        "signs": [Line(clt, upto), Line(clt_control, upto, {"signs": "random", "at": at})],
        "frankle": [Line(clt, upto), *frankle],
        "rewind": each(slt, upto, *({"rewind": point} for point in rewinds)),
        "source": each(slt, second, {"source": "dense"}) + each(slt_mp, beyond, {"source": "dense"}),
        "one-shot": each(slt, second, {"iterative": False}),
        "stepwise": each(slt_mp, beyond, {"stepwise": True}),
        "switch": each(slt_mp, beyond, *({"switch": point, "first": round(point - 0.1, 6)} for point in switches)),
        "optimizer": [line for recipe in (dense, mp, slt) for line in each(recipe, upto, {"optimizer": "adam"})],
        "average": [Line(recipe, upto, scored=("best", "average 4")) for recipe in (dense, mp, slt)],
        "final": [Line(RECIPES[name], levels, scored=("best", "final")) for name in ("dense", *techniques)],
        "controls": each(slt, upto_high) + controls(at, upto) + controls(high, upto_high),
        "again": each(slt, levels) + [Line(slt_control, levels, {"control": "none"})],
        "scope": each(slt, upto_high, {"scope": "global"}),
        "criterion": each(slt, upto, {"criterion": "magnitude_increase"}, {"criterion": "movement"}),
        "subnetworks": subnetworks(),
        "stability": [Line(stability, upto_high, {"start": start, "at": high}, label) for start, label in starts],
    }


def ablations(study: Study) -> list[Chain]:
    """The chains of the comparisons that the study file names; `true` means those of the paper."""
    asked = study.params.ablations
    names = asked if isinstance(asked, list) else ABLATIONS if asked else ()
    return [chain for group in compared(study, names).values() for chain in group]


def dissected(study: Study) -> dict[str, list[Chain]]:
    """The trained controls of notebook 10, in a rehearsal for one seed alone.

    "noise": the dense ticket and a copy with another order of sentences and other dropout masks. "again": the dense run
    rewound and trained again at every level.
    """
    recipes = {"noise": (stability, {"copies": 1}), "again": (slt_control, {"control": "none"})}
    return {
        name: [study.chain(recipe, seed, **knobs) for seed in _few_seeds(study)]
        for name, (recipe, knobs) in recipes.items()
    }


def retrained(study: Study, at: float = 0.8, draws: int = 0) -> list[Chain]:
    """The chains of `subnetworks`, as notebook 11 trains them.

    `draws`: 0 means three, or one in a rehearsal, which uses only the first seed.
    """
    draws = draws or (1 if study.params.rehearsal else RANDOM)
    return _chains(study, _few_seeds(study), subnetworks(at, draws))


def _few_seeds(study: Study) -> list[int]:
    return study.seeds[:1] if study.params.rehearsal else study.seeds


def compared(study: Study, names: Sequence[str], **options) -> dict[str, list[Chain]]:
    """Name of a comparison -> its chains, for all seeds of the study. `options`: see `comparisons`.

    Raises InputError for an unknown name.
    """
    catalogue = comparisons(study.levels, techniques=study.params.pairs[study.pair], **options)
    for name in names:
        check_choice("comparisons", name, tuple(catalogue))
    return {name: _chains(study, study.seeds, catalogue[name]) for name in names}


def _chains(study: Study, seeds: Sequence[int], lines: Sequence[Line]) -> list[Chain]:
    return [
        study.chain(line.recipe, seed, line.levels, line.label, line.scored, **line.knobs)
        for seed in seeds
        for line in lines
    ]
