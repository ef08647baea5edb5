"""Settings of the advantages."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, assert_never

from treeopo.errors import ConfigError


class AdvantageMethod(StrEnum):
    """What turns a group's rewards into advantages: docs/advantages.md, Methods.

    Table 1 of the paper (Tree-OPO, arXiv 2509.09284) has grpo, flat, trace, expectation, optimistic, pessimistic and
    qp-hard; §3.4 has mc, App. A and B the convex and the soft program. loo and posterior are treeopo's.
    """

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


QpMethod = Literal[AdvantageMethod.QP_HARD, AdvantageMethod.QP_CONVEX, AdvantageMethod.QP_SOFT]
"""The methods that solve a program on top of rewards or of a heuristic."""

QP_METHODS = frozenset({AdvantageMethod.QP_HARD, AdvantageMethod.QP_CONVEX, AdvantageMethod.QP_SOFT})
HISTORY_METHODS = frozenset(
    {
        AdvantageMethod.TRACE,
        AdvantageMethod.EXPECTATION,
        AdvantageMethod.OPTIMISTIC,
        AdvantageMethod.PESSIMISTIC,
        AdvantageMethod.POSTERIOR,
    }
)
BINARY_METHODS = frozenset({AdvantageMethod.OPTIMISTIC, AdvantageMethod.PESSIMISTIC, AdvantageMethod.POSTERIOR})

# Appendix B; (pair, triplet). The heuristics are judged by the strict order, without a margin.
_PAPER_MARGINS = {AdvantageMethod.QP_HARD: (0.0, 1e-2), AdvantageMethod.QP_SOFT: (1e-3, 1e-3)}


_DEFAULT_M = 4


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    """How rewards become advantages; the defaults are the paper's. Raises ConfigError where a value is impossible."""

    method: AdvantageMethod = AdvantageMethod.EXPECTATION
    """What turns a group's rewards into advantages: docs/advantages.md, Methods."""

    alpha: float = 0.5
    """Weight of the baseline in the advantage r - alpha V, in [0, 1] (Tree-OPO §3.3)."""

    scope: Scope = Scope.GROUP
    """Whose samples V counts: the group's, or with `history` all of the run's so far (trace, expectation, optimistic,
    pessimistic and posterior)."""

    standardize: bool = True
    """grpo only: divide by the population standard deviation of the group; false centres only."""

    solver: Solver = Solver.SLSQP
    """qp-*: `slsqp`, the paper's (App. B), or `exact`, an active set: the same optimum, faster."""

    target: str = "rewards"
    """qp-*: what the program stays close to, `rewards` (Eq. 1) or a heuristic's advantages by its name (Alg. 1)."""

    margin_pair: float | None = None
    """qp-*: margin delta of pair constraints; none: the method's own, 0.001 for qp-soft and 0 for the others."""

    margin_triplet: float | None = None
    """qp-*: margin delta of triplet constraints; none: the method's own, 0.01 for qp-hard, 0.001 for qp-soft and 0 for
    qp-convex (App. B)."""

    penalty: float = 1.0
    """qp-soft, and any program without a solution: lambda, what a squared violation of the order costs, above 0."""

    infeasible: Infeasible = Infeasible.SOFT
    """What a program without a solution becomes: `soft` solves the soft program and counts it, `raise` is an error."""

    prior_mean: float = 0.5
    """posterior: mean of the Beta prior at the root, in (0, 1)."""

    prior_strength: float = 2.0
    """posterior: how many samples the prior, and then each parent's estimate, is worth; above 0."""

    baseline_rollouts: int = _DEFAULT_M
    """mc: M, the extra rollouts from each prefix that its baseline is made of, beside those learned from (Tree-OPO
    Alg. 1)."""

    confidence: float = 0.95
    """mc: coverage of the Hoeffding interval reported with each value, in (0, 1) (Tree-OPO App. A.9)."""

    def __post_init__(self) -> None:
        for name, names in (
            ("method", AdvantageMethod),
            ("scope", Scope),
            ("solver", Solver),
            ("infeasible", Infeasible),
        ):
            object.__setattr__(self, name, _member(name, names, getattr(self, name)))
        if self.target != "rewards":
            object.__setattr__(self, "target", _member("target", AdvantageMethod, self.target))
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
        if self.baseline_rollouts < 1:
            raise ConfigError(f"baseline_rollouts = {self.baseline_rollouts}: expected at least 1")
        for name in ("prior_mean", "confidence"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a number between 0 and 1, exclusive")

    def _check_combinations(self) -> None:
        if self.baseline_rollouts != _DEFAULT_M and self.baseline is not AdvantageMethod.MC:
            raise ConfigError(f"baseline_rollouts = {self.baseline_rollouts}: only mc takes extra rollouts")
        if self.target != "rewards" and self.method not in QP_METHODS:
            raise ConfigError(f"target = {self.target}: only qp-hard, qp-convex and qp-soft have a target")
        if self.target in QP_METHODS:
            raise ConfigError(f"target = {self.target}: a program refines rewards or a heuristic, not another program")
        if self.scope is Scope.HISTORY and self.baseline not in HISTORY_METHODS:
            allowed = ", ".join(sorted(HISTORY_METHODS))
            raise ConfigError(f"scope = history: {self.baseline} keeps no history; choose one of {allowed}")
        if not self.standardize and self.baseline is not AdvantageMethod.GRPO:
            raise ConfigError(f"standardize = False: {self.baseline} is never standardized; the setting is grpo's")

    @property
    def program(self) -> QpMethod | None:
        """The program that is solved; None for a heuristic."""
        match self.method:
            case AdvantageMethod.QP_HARD | AdvantageMethod.QP_CONVEX | AdvantageMethod.QP_SOFT as program:
                return program
            case (
                AdvantageMethod.GRPO
                | AdvantageMethod.FLAT
                | AdvantageMethod.TRACE
                | AdvantageMethod.EXPECTATION
                | AdvantageMethod.OPTIMISTIC
                | AdvantageMethod.PESSIMISTIC
                | AdvantageMethod.MC
                | AdvantageMethod.LOO
                | AdvantageMethod.POSTERIOR
            ):
                return None
            case _ as unknown:
                assert_never(unknown)

    @property
    def baseline(self) -> AdvantageMethod:
        """The heuristic whose advantages are used or refined; `flat` where a program takes the rewards themselves."""
        if self.program is None:
            return self.method
        return AdvantageMethod.FLAT if self.target == "rewards" else AdvantageMethod(self.target)

    @property
    def needs_binary(self) -> bool:
        """Whether rewards must be 0 or 1: the baseline counts successes, or a program is bound by the tree's order."""
        return self.program is not None or self.baseline in BINARY_METHODS

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
