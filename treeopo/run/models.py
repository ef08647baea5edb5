"""Which weights a name means, and an engine that serves them: a model, an adapter directory or a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, assert_never

from treeopo.engines.settings import Adapters, EngineOptions, publishable_as
from treeopo.errors import ModelError, RunError
from treeopo.learner.checkpoints import Checkpoints
from treeopo.ports import Engine
from treeopo.problems.spec import difficulty_of
from treeopo.records import WeightFormat
from treeopo.run.adapter_files import CONFIG, base_of, room_for
from treeopo.run.directory import RunDirectory
from treeopo.run.settled import check_places

if TYPE_CHECKING:
    from treeopo.tiny import TinyModels

BASE = "base"
"""As `--against base`: the model under the adapter that is evaluated."""


_DEPTH = 3
"""Directories between a run and an adapter in it: RUN/checkpoints/step-N/adapter."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model (hub name or directory), with an adapter over it or none; `label` is what a person called it, and
    `base_name` the base, where it is loaded from elsewhere (a revision, from the hub's cache).
    """

    label: str
    base: str
    adapter: Path | None = None
    base_name: str = ""

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: beside the adapter, if that was saved with one, or the base's."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return str(self.adapter) if own else self.base

    def without_adapter(self) -> "ModelRef":
        return ModelRef(BASE, self.base)


def resolve(name: str, base: str | None = None) -> ModelRef:
    """What `name` means: a run (its trained adapter, else its newest checkpoint's), an adapter, or a model.

    base: of an adapter, in place of the one that it names.

    Raises:
        RunError: a run without a checkpoint. ModelError: an adapter that does not name its base, or one not to be had.
    """
    path, student = Path(name).expanduser(), None
    of_a_run = path.absolute().parents[:_DEPTH] if (path / CONFIG).is_file() else ()
    if home := next((each for each in (path, *of_a_run) if RunDirectory.is_at(each)), None):
        config = RunDirectory.open(home).config
        student = config.student
        if base is None:
            check_places(config, home, frozenset({"student"}))
    if home == path:
        run = RunDirectory.open(path)
        checkpoint = Checkpoints(run.checkpoints, run.config.checkpoints_kept).latest()
        if not run.is_complete and checkpoint is None:
            raise RunError(f"{path}: the run has no checkpoint yet; let it reach one, or evaluate its student")
        path = run.adapter if run.is_complete or checkpoint is None else checkpoint / "adapter"
    if not (path / CONFIG).is_file():
        return ModelRef(name, name)
    loaded, called = base_of(path, base, student)
    return ModelRef(name, loaded, path, called)


def check_whole(setting: str, name: str) -> None:
    """Whether the model `name`, which `setting` gives, is neither an adapter nor a run: transformers would load an
    adapter and its base as one, over which another adapter is then trained that fits neither.

    Raises:
        ModelError: it is one; the line says how to make a model of it.
    """
    path = Path(name).expanduser()
    kind = "an adapter" if (path / CONFIG).is_file() else "a training run" if RunDirectory.is_at(path) else None
    if kind is not None:
        raise ModelError(
            f"{setting} {name}: is {kind}, not a whole model; merge it first: treeopo export {name} --merge DIR, and "
            "give DIR"
        )


_CONTINUES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How transformers' classes end that continue a text."""


def check_continues(setting: str, name: str, trust_remote_code: bool = False) -> None:
    """Whether the model `name` continues a text, as far as its configuration tells: of one that classifies, embeds or
    rewards, transformers would load the body under a head of random weights.

    Raises:
        ModelError: it does not.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return  # whoever loads it says what is wrong with it
    kinds = getattr(config, "architectures", None) or []
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    reads_first = getattr(config, "is_encoder_decoder", False)
    if reads_first or not (own_code or not kinds or any(kind.endswith(_CONTINUES) for kind in kinds)):
        what = "an encoder with a decoder" if reads_first else "no model that continues a text"
        raise ModelError(
            f"{setting} {name}: is {what} ({', '.join(kinds) or config.model_type}); give a causal language model"
        )


def embedded(problems: str) -> "TinyModels":
    """The embedded student and teacher that belong to a problem set, made now if this machine has not made them yet."""
    from treeopo.tiny import ensure_tiny

    return ensure_tiny(difficulty_of(problems))


def check_servable(models: Sequence[ModelRef], options: EngineOptions) -> None:
    """Find out, before an engine starts, whether every model continues a text, and every adapter is one of its base
    that can be served.

    Raises:
        ModelError: one is not, or its base cannot be loaded.
    """
    for model in models:
        check_continues("model", model.base, options.trust_remote_code)
        if model.adapter is not None:
            from treeopo.learner import adapters as saved

            saved.check_servable(model.base, model.adapter, options.trust_remote_code)
            publishable_as(options, room_for([model.adapter]))


def adapters(models: Sequence[ModelRef]) -> Adapters | None:
    """What an engine must make room for to serve one of `models` after the other."""
    found = [model.adapter for model in models if model.adapter is not None]
    return room_for(found) if found else None


async def serve(engine: Engine, version: int, ref: ModelRef, trust_remote_code: bool = False) -> None:
    """Have an engine that was started on `ref.base` answer with its adapter, as `version`."""
    if ref.adapter is None:
        return
    match engine.weight_format:
        case WeightFormat.ADAPTER:
            await engine.publish(version, ref.adapter)
        case WeightFormat.MERGED:
            from treeopo.learner.merge import merged_model, save_for_engine

            with TemporaryDirectory() as directory:
                weights = Path(directory) / "policy.safetensors"
                save_for_engine(merged_model(ref.base, ref.adapter, trust_remote_code), weights)
                await engine.publish(version, weights)
        case _:
            assert_never(engine.weight_format)
