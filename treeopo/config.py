"""Every setting of every command: defaults, bounds and how files and flags combine. Needs neither torch nor vLLM.

Each room owns its settings class; the commands' configurations here are made of them. Precedence: flag, then file, then
`EMBEDDED` where the embedded default models are used, then the default written here.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from treeopo.advantage.settings import AdvantageSettings
from treeopo.engines.server_settings import base_url
from treeopo.engines.settings import EngineOptions
from treeopo.errors import ConfigError, require
from treeopo.evaluation.settings import PeriodicSettings
from treeopo.learner.settings import CriticSettings, DirectValueSettings, KlSettings, LearnerSettings
from treeopo.methods import Batches, Need, Term, find_method, plan_groups
from treeopo.problems.prompting import PromptSettings
from treeopo.problems.settings import GradingSettings
from treeopo.problems.solutions import SolutionSettings
from treeopo.rollout.settings import Credit, RolloutSettings
from treeopo.search.settings import SearchSettings


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_keys(kind: type) -> BeforeValidator:
    """pydantic ignores unknown keys of a standard dataclass; a misspelt setting must not pass in silence."""

    def check(values: Any, kind: Any = kind) -> Any:
        if isinstance(values, Mapping):
            known = {field.name: field.type for field in fields(kind)}
            unknown = sorted(set(values) - set(known))
            if unknown:
                raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
            for name, value in values.items():
                if is_dataclass(known[name]):
                    check(value, known[name])
        return values

    return BeforeValidator(check)


Engine = Annotated[EngineOptions, _known_keys(EngineOptions)]
Prompt = Annotated[PromptSettings, _known_keys(PromptSettings)]
Grading = Annotated[GradingSettings, _known_keys(GradingSettings)]


class TrainConfig(Section):
    store: Path | None = None  # None: trees.zarr, or none at all where solutions.problems is given
    output: Path
    student: str | None = None  # None: the embedded default
    teacher: str | None = None  # None: the embedded default, or with a student of your own the store's
    teacher_urls: tuple[str, ...] = ()  # servers that score for it; none: it is loaded in the learner's process
    teacher_steps: int | None = Field(None, ge=1)  # mcts-reinforce: of its first stage; None: as many as steps
    retokenize: bool = False  # copy the store under the student's tokenizer where it is another than the teacher's
    method: str = "tree-opo"  # a name of treeopo.methods
    steps: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(10, ge=1)
    checkpoints_kept: int = Field(2, ge=1)
    advantage: Annotated[AdvantageSettings, _known_keys(AdvantageSettings)] = AdvantageSettings()
    rollout: Annotated[RolloutSettings, _known_keys(RolloutSettings)] = RolloutSettings()
    learner: Annotated[LearnerSettings, _known_keys(LearnerSettings)] = LearnerSettings()
    grading: Grading = GradingSettings()
    evaluation: Annotated[PeriodicSettings, _known_keys(PeriodicSettings)] = PeriodicSettings()
    solutions: Annotated[SolutionSettings, _known_keys(SolutionSettings)] = SolutionSettings()
    kl: Annotated[KlSettings, _known_keys(KlSettings)] = KlSettings()
    critic: Annotated[CriticSettings, _known_keys(CriticSettings)] = CriticSettings()
    dvo: Annotated[DirectValueSettings, _known_keys(DirectValueSettings)] = DirectValueSettings()
    engine: Engine = EngineOptions()

    @model_validator(mode="before")
    @classmethod
    def _store_or_problems(cls, values: Any) -> Any:
        solutions = values.get("solutions") or {}
        problems = solutions.get("problems") if isinstance(solutions, Mapping) else None
        return values if values.get("store") or problems else {**values, "store": "trees.zarr"}

    @model_validator(mode="after")
    def _method_can_use_it(self) -> Self:
        """Settings that the method would ignore are refused, so that nobody believes in them."""
        method = find_method(self.method)
        if method.start is not None or self.advantage != AdvantageSettings():
            plan_groups(method, self.advantage)
        require(
            Need.ENGINE in method.needs or self.rollout.temperature == 1,
            f"rollout.temperature is {self.rollout.temperature}; method {method.name} samples nothing, leave it at 1",
        )
        require(
            self.dvo == DirectValueSettings() or Term.DIRECT_VALUE in method.terms,
            f"dvo.beta belongs to method dvo; method {method.name} has no use for it",
        )
        require(
            self.kl == KlSettings() or Term.KL in method.terms,
            f"kl settings belong to method tree-opo-kl; method {method.name} has no use for them",
        )
        require(
            self.critic == CriticSettings() or Need.CRITIC in method.needs,
            f"critic settings belong to method actor-critic; method {method.name} has no critic",
        )
        require(
            Need.CRITIC not in method.needs or self.steps > self.critic.warmup_steps,
            f"critic.warmup_steps is {self.critic.warmup_steps} and steps {self.steps}: no step is left to the policy; "
            "raise steps or lower the warm-up",
        )
        require(
            self.teacher is None or Need.TEACHER in method.needs,
            f"teacher is given, but method {method.name} learns from none; leave it out",
        )
        require(
            not self.teacher_urls or self.needs_scores,
            f"teacher_urls: method {method.name} asks no teacher for log-probabilities of tokens; leave it out, or set "
            "kl.estimate sampled",
        )
        require(
            not self.teacher_urls or method.teacher_by is None,
            f"teacher_urls: method {method.name} tunes its teacher first; no server has it",
        )
        require(
            len({base_url(url) for url in self.teacher_urls}) == len(self.teacher_urls),
            "teacher_urls names a server twice; name each once",
        )
        require(
            self.teacher_steps is None or method.teacher_by is not None,
            f"teacher_steps belongs to method mcts-reinforce; method {method.name} tunes no teacher",
        )
        require(
            method.credit is not Credit.LEAVE_ONE_OUT or self.rollout.group_size > 1,
            f"method {method.name} compares the completions of a group; rollout.group_size must be 2 or more",
        )
        require(
            self.solutions.problems is None or method.batches is Batches.SOLUTIONS,
            f"solutions.problems belongs to method sft; method {method.name} learns from a store",
        )
        require(
            (self.store is None) == (self.solutions.problems is not None),
            "give a store or solutions.problems to learn from, one of the two",
        )
        return self

    @property
    def needs_scores(self) -> bool:
        """Whether batches carry what the teacher thinks of each token; whole distributions are the learner's matter."""
        method = find_method(self.method)
        return method.credit is not None or (Term.KL in method.terms and self.kl.estimate == "sampled")


class BuildConfig(Section):
    output: Path
    teacher: str | None = None  # None: the embedded default
    problems: str = "staged-arithmetic:easy:train"
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    concurrency: int = Field(128, ge=1)
    search: Annotated[SearchSettings, _known_keys(SearchSettings)] = SearchSettings()
    prompt: Prompt = PromptSettings()
    grading: Grading = GradingSettings()
    engine: Engine = EngineOptions()


class EvalConfig(Section):
    model: str | None = None  # None: the embedded student
    against: str | None = None
    problems: tuple[str, ...] = Field(("staged-arithmetic:easy:test",), min_length=1)
    limit: int | None = Field(None, ge=1)
    samples: int = Field(0, ge=0)  # completions a problem at temperature 1, beside the greedy one
    max_new_tokens: int = Field(256, ge=1)
    seed: int = Field(0, ge=0)
    output: Path | None = None  # goes on with what a stopped evaluation left there
    prompt: Prompt = PromptSettings()
    grading: Grading = GradingSettings()
    engine: Engine = EngineOptions()


# The embedded models are a thousand times smaller than the paper's: bigger batches of shorter texts, a higher rate.
# They apply where the setting that names a model is not given.
EMBEDDED: dict[type[Section], tuple[str, dict[str, Any]]] = {
    BuildConfig: ("teacher", {"limit": 200, "search": {"max_step_tokens": 32, "max_solution_tokens": 96}}),
    TrainConfig: (
        "student",
        {
            "steps": 60,
            "learner": {"optimizer": {"learning_rate": 3e-4}, "microbatch_tokens": 2048},
            "rollout": {"batch_size": 128, "max_prompt_tokens": 192, "max_sequence_tokens": 256},
        },
    ),
}

_Config = TypeVar("_Config", bound=Section)


def load_config(kind: type[_Config], *, file: Path | None, flags: Mapping[str, Any]) -> _Config:
    """Combine defaults, a TOML file and flags (dotted names; None means not given) into a validated config.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a value is out of bounds; one line for all of them.
    """
    values = _read(file) if file else {}
    for name, value in flags.items():
        if value is not None:
            values = _merge(values, _nested(name.split("."), value))
    model, defaults = EMBEDDED.get(kind, ("", {}))
    if values.get(model) is None:
        values = _merge(defaults, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{file or 'settings'}: " + "; ".join(_complaint(row) for row in error.errors())) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give an existing TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML ({error})") from None


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value)} if len(path) > 1 else {path[0]: value}


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _complaint(row: Any) -> str:
    where = ".".join(str(part) for part in row["loc"])
    reason = row["msg"].removeprefix("Value error, ")
    given = "" if row["type"] in ("missing", "value_error") else f" (got {row['input']!r})"
    return f"{where}: {reason}{given}" if where else f"{reason}{given}"
