"""How advantages are computed: one frozen record, checked when it is made."""

from dataclasses import dataclass
from enum import StrEnum

from treeopo.errors import ConfigError


class Method(StrEnum):
    """Names of SPEC §3 and §5; Table 1 of the paper has the rows grpo to qp-hard."""

    GRPO = "grpo"
    FLAT = "flat"
    TRACE = "trace"
    EXPECTATION = "expectation"
    OPTIMISTIC = "optimistic"
    PESSIMISTIC = "pessimistic"
    MC = "mc"
    LOO = "loo"
    POSTERIOR = "posterior"
    QP_HARD = "qp-hard"
    QP_CONVEX = "qp-convex"
    QP_SOFT = "qp-soft"


class Scope(StrEnum):
    """Whose samples a baseline counts: this group's, or all of the run's so far."""

    GROUP = "group"
    HISTORY = "history"


class Solver(StrEnum):
    """SLSQP is SciPy's and the paper's; EXACT is treeopo's active set, the same optimum."""

    SLSQP = "slsqp"
    EXACT = "exact"


class Infeasible(StrEnum):
    """What becomes of a program without a solution: its soft relaxation, or an error."""

    SOFT = "soft"
    RAISE = "raise"


QP_METHODS = frozenset({Method.QP_HARD, Method.QP_CONVEX, Method.QP_SOFT})
HISTORY_METHODS = frozenset({Method.TRACE, Method.EXPECTATION, Method.OPTIMISTIC, Method.PESSIMISTIC, Method.POSTERIOR})
BINARY_METHODS = frozenset({Method.OPTIMISTIC, Method.PESSIMISTIC, Method.POSTERIOR})

# Appendix B; (pair, triplet). The heuristics are judged by the strict order, without a margin.
_PAPER_MARGINS = {Method.QP_HARD: (0.0, 1e-2), Method.QP_SOFT: (1e-3, 1e-3)}


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    """Settings of `staged_advantages`; the defaults are the paper's. Raises ConfigError where a value is impossible.

    method           one of `Method`
    alpha            weight of the baseline in a' = r - alpha V, in [0, 1]
    scope            whose samples V counts; `history` for trace, expectation, optimistic, pessimistic and posterior
    standardize      grpo only: divide by the population standard deviation as well
    solver           qp-*: `slsqp` or `exact`
    target           qp-*: what the program stays close to, `rewards` or the advantages of a heuristic ("refine")
    margin_pair      delta of pair constraints; None takes the method's own (qp-hard 0, qp-soft 1e-3, others 0)
    margin_triplet   delta of triplet constraints; None takes the method's own (qp-hard 1e-2, qp-soft 1e-3, others 0)
    penalty          lambda of the soft program, > 0
    infeasible       `soft` solves the soft program instead and counts it, `raise` stops
    prior_mean       posterior: mean of the Beta prior at the root, in (0, 1)
    prior_strength   posterior: samples that a prior, and then each parent's estimate, is worth, > 0
    confidence       mc: coverage of the reported Hoeffding interval, in (0, 1)
    """

    method: Method = Method.EXPECTATION
    alpha: float = 0.5
    scope: Scope = Scope.GROUP
    standardize: bool = True
    solver: Solver = Solver.SLSQP
    target: str = "rewards"
    margin_pair: float | None = None
    margin_triplet: float | None = None
    penalty: float = 1.0
    infeasible: Infeasible = Infeasible.SOFT
    prior_mean: float = 0.5
    prior_strength: float = 2.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name, names in (("method", Method), ("scope", Scope), ("solver", Solver), ("infeasible", Infeasible)):
            object.__setattr__(self, name, _member(name, names, getattr(self, name)))
        if self.target != "rewards":
            object.__setattr__(self, "target", _member("target", Method, self.target))
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha = {self.alpha}: expected a weight in [0, 1]")
        for name in ("margin_pair", "margin_triplet"):
            margin = getattr(self, name)
            if margin is not None and not 0.0 <= margin < float("inf"):
                raise ConfigError(f"{name} = {margin}: expected a finite margin of at least 0")
        for name in ("penalty", "prior_strength"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a finite number above 0")
        for name in ("prior_mean", "confidence"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a number between 0 and 1, exclusive")

    def _check_combinations(self) -> None:
        if self.target != "rewards" and self.method not in QP_METHODS:
            raise ConfigError(f"target = {self.target}: only qp-hard, qp-convex and qp-soft have a target")
        if self.target in QP_METHODS:
            raise ConfigError(f"target = {self.target}: a program refines rewards or a heuristic, not another program")
        if self.scope is Scope.HISTORY and self.baseline not in HISTORY_METHODS:
            allowed = ", ".join(sorted(HISTORY_METHODS))
            raise ConfigError(f"scope = history: {self.baseline} keeps no history; choose one of {allowed}")
        if not self.standardize and self.baseline is not Method.GRPO:
            raise ConfigError(f"standardize = False: {self.baseline} is never standardized; the setting is grpo's")

    @property
    def baseline(self) -> Method:
        """The heuristic whose advantages are used or refined; `flat` where a program takes the rewards themselves."""
        if self.method not in QP_METHODS:
            return self.method
        return Method.FLAT if self.target == "rewards" else Method(self.target)

    @property
    def margins(self) -> tuple[float, float]:
        """(pair, triplet) margins, the method's own where none was given."""
        pair, triplet = _PAPER_MARGINS.get(self.method, (0.0, 0.0))
        return (
            pair if self.margin_pair is None else self.margin_pair,
            triplet if self.margin_triplet is None else self.margin_triplet,
        )


def _member(name: str, names: type[StrEnum], value: str) -> StrEnum:
    try:
        return names(value)
    except ValueError:
        raise ConfigError(f"{name} = {value!r}: expected one of {', '.join(names)}") from None
