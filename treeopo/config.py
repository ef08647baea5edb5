"""Every setting of every command: defaults, bounds and how files and flags combine. Needs neither torch nor vLLM.

Each room owns its settings class; the commands' configurations here are made of them. Precedence: flag, then file, then
`EMBEDDED` where the embedded default models are used, then the default written here.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from treeopo_storage.errors import StoreAccessError, StoreError
from treeopo_storage.places import Place, parse_place
from treeopo_storage.text_files import read_text

from treeopo.advantage.settings import AdvantageSettings
from treeopo.engines.server_settings import base_url
from treeopo.engines.settings import EngineOptions
from treeopo.errors import ConfigError, require
from treeopo.evaluation.settings import PeriodicSettings
from treeopo.learner.settings import CriticSettings, DirectValueSettings, KlSettings, LearnerSettings
from treeopo.methods import METHODS, GroupPlan, LossName, Need, find_method, owners, plan_groups
from treeopo.places import at_home, mapped
from treeopo.problems.prompting import PromptSettings
from treeopo.problems.protocols import PROTOCOLS, ProtocolName
from treeopo.problems.settings import GradingSettings
from treeopo.problems.solutions import SolutionSettings
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings, TeacherReward
from treeopo.search.settings import SearchSettings
from treeopo.setting_names import meant

RENAMED = {"grading": {"family": "grader"}}
"""By section, settings under the names they had in earlier versions: files, flags and old runs may use those."""


_UNKNOWN = "unknown_setting"

_POLICY_GRADIENTS = {LossName.POLICY_GRADIENT, LossName.ACTOR_CRITIC}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _under_their_new_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return mapped({name: _renamed(value, RENAMED.get(name, {})) for name, value in values.items()}, at_home)


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(values, Mapping):
        return values
    for old, new in names.items():
        require(old not in values or new not in values, f"{old} is the earlier name of {new}; give {new} alone")
    return {names.get(name, name): value for name, value in values.items()}


def _known_keys(kind: type) -> BeforeValidator:
    """pydantic ignores unknown keys of a standard dataclass; a misspelt setting must not pass in silence."""

    def check(values: Any, kind: Any = kind, within: tuple[str, ...] = ()) -> Any:
        if isinstance(values, Mapping):
            known = {field.name: field.type for field in fields(kind)}
            if unknown := sorted(set(values) - set(known)):
                name = ".".join((*within, unknown[0]))
                raise PydanticCustomError(_UNKNOWN, "unknown setting {name}", {"name": name})
            for name, value in values.items():
                if is_dataclass(known[name]):
                    check(value, known[name], (*within, name))
        return values

    return BeforeValidator(check)


StorePlace = Annotated[Place, AfterValidator(parse_place), WithJsonSchema({"type": "string", "format": "path or URL"})]
"""Where a tree store is. pathlib would make a local, relative path of a URL."""

Engine = Annotated[EngineOptions, _known_keys(EngineOptions)]
Prompt = Annotated[PromptSettings, _known_keys(PromptSettings)]
Grading = Annotated[GradingSettings, _known_keys(GradingSettings)]


class TrainConfig(Section):
    """`treeopo train`."""

    store: StorePlace | None = None
    """The tree store to learn from; none: trees.zarr, or none where solutions.problems is given."""

    output: Path = Path("runs/latest")
    """Directory of the new run."""

    student: str | None = None
    """Hub name or directory of the model that learns; none: the embedded student."""

    teacher: str | None = None
    """Hub name or directory of the teacher, for methods that have one; none: the embedded teacher, or with a student of
    your own the store's."""

    teacher_urls: tuple[str, ...] = ()
    """vLLM servers that score for the teacher (docs/servers.md); none: it is loaded in the learner's process."""

    teacher_steps: int | None = Field(None, ge=1)
    """mcts-reinforce: optimiser steps of the first stage, which tunes the teacher; none: as many as steps."""

    retokenize: bool = False
    """Encode the store's steps anew where the student's tokenizer is another than the teacher's."""

    method: str = "tree-opo"
    """A training method, as `treeopo methods` lists them (docs/methods.md)."""

    steps: int = Field(200, ge=1)
    """Optimiser steps of the run, over which the learning rate falls."""

    seed: int = Field(0, ge=0)
    """Of everything random in the run."""

    checkpoint_every: int = Field(10, ge=1)
    """Steps between two checkpoints; where steps are slow there is one every half minute too (treeopo/run/due.py)."""

    checkpoints_kept: int = Field(2, ge=1)
    """So many of the newest are kept."""

    rollouts_kept: Annotated[int, Field(ge=0)] | Literal["all", "none"] = 100
    """Of so many of the newest steps the rollouts stay in RUN/rollouts (docs/metrics.md); or all, or none."""

    advantage: Annotated[AdvantageSettings, _known_keys(AdvantageSettings)] = AdvantageSettings()
    """How rewards become advantages (docs/advantages.md)."""

    rollout: Annotated[RolloutSettings, _known_keys(RolloutSettings)] = RolloutSettings()
    """What a step learns from, and how stale it may be (docs/pipeline.md)."""

    learner: Annotated[LearnerSettings, _known_keys(LearnerSettings)] = LearnerSettings()
    """The optimiser step (docs/learner.md)."""

    grading: Grading = GradingSettings()
    """How answers are graded (docs/problems.md)."""

    trackers: tuple[str, ...] = ()
    """Metric trackers beside JSON Lines and TensorBoard: wandb, trackio, mlflow, or package.module:Name."""

    evaluation: Annotated[PeriodicSettings, _known_keys(PeriodicSettings)] = PeriodicSettings()
    """Evaluation beside training."""

    solutions: Annotated[SolutionSettings, _known_keys(SolutionSettings)] = SolutionSettings()
    """sft: worked solutions of a problem set, in the place of a store."""

    kl: Annotated[KlSettings, _known_keys(KlSettings)] = KlSettings()
    """tree-opo-kl: the divergence from the teacher."""

    critic: Annotated[CriticSettings, _known_keys(CriticSettings)] = CriticSettings()
    """actor-critic: the value function."""

    dvo: Annotated[DirectValueSettings, _known_keys(DirectValueSettings)] = DirectValueSettings()
    """dvo: direct value optimisation."""

    engine: Engine = EngineOptions()
    """The inference engine (docs/vllm.md, docs/servers.md)."""

    @model_validator(mode="before")
    @classmethod
    def _store_or_problems(cls, values: Any) -> Any:
        solutions = values.get("solutions") or {}
        problems = solutions.get("problems") if isinstance(solutions, Mapping) else None
        return values if values.get("store") or problems else {**values, "store": "trees.zarr"}

    @field_validator("rollouts_kept", mode="before")
    @classmethod
    def _number_all_or_none(cls, kept: Any) -> Any:
        is_known = kept in ("all", "none") or str(kept).isdecimal()
        require(is_known, f"{kept!r} is no number of steps; give 0 or more, or all, or none")
        return kept

    @model_validator(mode="after")
    def _method_can_use_it(self) -> Self:
        """Settings that the method would ignore are refused, so that nobody believes in them."""
        method = find_method(self.method)
        for section in sorted(set().union(*(each.sections for each in METHODS.values())) - method.sections):
            require(
                getattr(self, section) == type(self).model_fields[section].default,
                f"{section} is for {owners(section)}; method {method.name} has no use for it, leave it out",
            )
        if method.start is None:
            for name in ("sampling", "completions_per_prefix", "no_signal", "curriculum", "memory"):
                require(
                    getattr(self.rollout, name) == getattr(RolloutSettings(), name),
                    f"rollout.{name}: method {method.name} has no groups, so no start states; leave it out",
                )
        else:
            plan_groups(method, self.advantage, self.rollout)
        require(
            Need.ENGINE in method.needs or self.rollout.temperature == 1,
            f"rollout.temperature is {self.rollout.temperature}; method {method.name} samples nothing, leave it at 1",
        )
        require(
            Need.ENGINE in method.needs or self.rollouts_kept == type(self).model_fields["rollouts_kept"].default,
            f"rollouts_kept: method {method.name} samples nothing, so it has no rollouts to keep; leave it out",
        )
        has_steps = method.start is not None and self.group_plan.start != StartStates.ROOT
        require(
            self.learner.prefix_loss == 0 or (has_steps and not _POLICY_GRADIENTS.isdisjoint(method.losses)),
            f"learner.prefix_loss is {self.learner.prefix_loss}; it needs a policy gradient of groups that start at "
            f"prefixes, and method {method.name} has none here, leave it out",
        )
        require(
            Need.CRITIC not in method.needs or self.steps > self.critic.warmup_steps,
            f"critic.warmup_steps is {self.critic.warmup_steps} and steps {self.steps}: no step is left to the policy; "
            "raise steps or lower the warm-up",
        )
        require(
            method.teacher_reward is not TeacherReward.LEAVE_ONE_OUT or self.rollout.group_size > 1,
            f"method {method.name} compares the completions of a group; rollout.group_size must be 2 or more",
        )
        return self

    @model_validator(mode="after")
    def _sources_are_clear(self) -> Self:
        """Store or solutions, and the teacher's servers."""
        require(
            (self.store is None) == (self.solutions.problems is not None),
            "give a store or solutions.problems to learn from, one of the two",
        )
        require(
            not self.teacher_urls or self.needs_scores,
            "teacher_urls: the teacher's whole distributions come from its weights; leave it out, or set kl.estimate "
            "sampled",
        )
        require(
            len({base_url(url) for url in self.teacher_urls}) == len(self.teacher_urls),
            "teacher_urls names a server twice; name each once",
        )
        return self

    @property
    def group_plan(self) -> GroupPlan:
        """Where groups start and how rewards become advantages, for a method with groups."""
        return plan_groups(find_method(self.method), self.advantage, self.rollout)

    @property
    def needs_binary(self) -> str | None:
        """What needs rewards of 0 or 1, by name; None where any reward in [0, 1] will do."""
        method = find_method(self.method)
        if method.start is None or method.teacher_reward is not None:
            return None
        advantage = self.group_plan.advantage
        return f"advantage.method {advantage.method}" if advantage.needs_binary else None

    @property
    def needs_scores(self) -> bool:
        """Whether batches carry what the teacher thinks of each token; whole distributions are the learner's matter."""
        method = find_method(self.method)
        return method.teacher_reward is not None or (LossName.KL in method.losses and self.kl.estimate == "sampled")


class BuildConfig(Section):
    """`treeopo mcts build`."""

    output: StorePlace = Path("trees.zarr")
    """The tree store to write, or to go on with."""

    teacher: str | None = None
    """Hub name or directory of the model that searches; none: the embedded teacher."""

    problems: str = "staged-arithmetic:easy:train"
    """The problem set to search (docs/problems.md)."""

    limit: int | None = Field(None, ge=1)
    """Its first so many problems; none: all."""

    seed: int = Field(0, ge=0)
    """Of everything random in the build."""

    concurrency: int = Field(128, ge=1)
    """Problems searched at once."""

    search: Annotated[SearchSettings, _known_keys(SearchSettings)] = SearchSettings()
    """The search of one problem (docs/search.md)."""

    prompt: Prompt = PromptSettings()
    """How a question is put to the teacher."""

    grading: Grading = GradingSettings()
    """How answers are graded (docs/problems.md)."""

    engine: Engine = EngineOptions()
    """The inference engine (docs/vllm.md, docs/servers.md)."""


class EvalConfig(Section):
    """`treeopo eval`."""

    model: str | None = None
    """Hub name, directory, adapter or run; none: the embedded student."""

    against: str | None = None
    """A second model, compared on the same problems."""

    base: str | None = None
    """Hub name or directory of the model under the adapters; none: what their adapter_config.json names."""

    problems: tuple[str, ...] = Field(("staged-arithmetic:easy:test",), min_length=1)
    """The problem sets (docs/problems.md)."""

    limit: int | None = Field(None, ge=1)
    """The first so many problems of each set; none: all."""

    samples: int = Field(0, ge=0)
    """Completions a problem at temperature 1, beside the greedy one."""

    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a completion at most."""

    grade_cut: bool = False
    """Grade a completion that ran out of tokens as any other; off: it is wrong, whatever it says."""

    protocol: ProtocolName | None = None
    """Ask, end and grade as another project does, for figures to compare with its own (docs/evaluation.md). It sets
    max_new_tokens, grade_cut, grading.grader, prompt.shots and prompt.examples where they are not given.
    """

    seed: int = Field(0, ge=0)
    """Of the completions that are sampled."""

    output: Path | None = None
    """Directory for scores.json and every completion; what a stopped evaluation left there is gone on with."""

    prompt: Prompt = PromptSettings()
    """How a question is put to the model."""

    grading: Grading = GradingSettings()
    """How answers are graded (docs/problems.md)."""

    engine: Engine = EngineOptions()
    """The inference engine (docs/vllm.md, docs/servers.md)."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_protocol_has_it(cls, values: Any) -> Any:
        found = PROTOCOLS.get(str(values.get("protocol"))) if isinstance(values, Mapping) else None
        return values if found is None else _merge(found.defaults(values), values)

    @model_validator(mode="after")
    def _protocol_has_its_own_words(self) -> Self:
        require(
            self.protocol is None or self.prompt.template is None,
            f"prompt.template: protocol {self.protocol} has its own text; leave one of them out",
        )
        return self


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
    values = _given(file, flags)
    model, defaults = EMBEDDED.get(kind, ("", {}))
    if values.get(model) is None:
        values = _merge(defaults, values)
    return _validated(kind, values, file)


def changed_config(config: _Config, *, file: Path | None, flags: Mapping[str, Any]) -> _Config:
    """`config` with what a TOML file and flags give in the place of its own.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validated(type(config), _merge(config.model_dump(), _given(file, flags)), file)


def differences(one: Section, other: Section) -> dict[str, tuple[Any, Any]]:
    """By dotted name, the settings in which two configurations of a command differ, with both values."""
    ours, theirs = (dict(_leaves(each.model_dump(mode="json"))) for each in (one, other))
    return {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _given(file: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file and flags, nested, under today's names; flags win."""
    values = _read(file) if file else {}
    for name, value in flags.items():
        if value is not None:
            values = _merge(values, _nested(name.split("."), value))
    return {name: _renamed(value, RENAMED.get(name, {})) for name, value in values.items()}


def _validated(kind: type[_Config], values: Mapping[str, Any], file: Path | None) -> _Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{file or 'settings'}: " + "; ".join(_complaint(row, kind) for row in error.errors())
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file))
    except StoreAccessError as error:
        raise ConfigError(f"{error}; give an existing TOML file") from None
    except StoreError as error:
        raise ConfigError(str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML ({error})") from None


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value)} if len(path) > 1 else {path[0]: value}


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _complaint(row: Any, kind: type[Section]) -> str:
    where = ".".join(str(part) for part in row["loc"])
    if row["type"] == "extra_forbidden":
        return _unknown(where, kind)
    if row["type"] == _UNKNOWN:
        return _unknown(f"{where}.{row['ctx']['name']}", kind)
    reason = row["msg"].removeprefix("Value error, ")
    given = "" if row["type"] in ("missing", "value_error") else f" (got {row['input']!r})"
    return f"{where}: {reason}{given}" if where else f"{reason}{given}"


def _unknown(name: str, kind: type[Section]) -> str:
    known = list(_names(kind))
    if likely := meant(name, known):
        return f"unknown setting {name}; did you mean {' or '.join(likely)}?"
    section = name.rpartition(".")[0]
    beside = (each for each in known if each.rpartition(".")[0] == section)
    return f"unknown setting {name}; known {f'in {section} ' if section else ''}are {', '.join(sorted(beside))}"


def _names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Of every setting in a section or dataclass of settings, those of sections within it dotted."""
    if is_dataclass(kind):
        types = {field.name: field.type for field in fields(kind)}
    else:
        types = {name: field.annotation for name, field in kind.model_fields.items()}
    for name, inner in types.items():
        is_section = is_dataclass(inner) or (isinstance(inner, type) and issubclass(inner, Section))
        yield from _names(inner, f"{prefix}{name}.") if is_section else [prefix + name]
