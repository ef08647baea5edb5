"""One prompt finished by the engine and graded."""

from collections.abc import Awaitable, Callable

from treeopo.ports import Generate
from treeopo.records import Completion, Prompt, PromptGroup, Request, Rollout
from treeopo.rollout.meter import EngineMeter, Metered
from treeopo.rollout.settings import RolloutSettings
from treeopo.seeds import derive_seed

GradeCompletion = Callable[[PromptGroup, Completion], Awaitable[float]]


class Finish:
    """What it asks the engine depends on (seed, group number, index, prompt) alone.

    A completion that ran out of tokens is wrong, whatever it says, and is not graded. `meter` counts the requests and
    knows which version serves. A completion also ends at any of the `stop` strings.
    """

    def __init__(
        self,
        generate: Generate,
        grade: GradeCompletion,
        settings: RolloutSettings,
        seed: int,
        meter: EngineMeter,
        stop: tuple[str, ...] = (),
    ) -> None:
        self._generate = Metered(generate, meter)
        self._meter = meter
        self._grade = grade
        self._settings = settings
        self._seed = seed
        self._stop = stop

    async def __call__(self, drawn: PromptGroup, index: int, prompt: Prompt) -> Rollout:
        """Raises: EngineError: the engine refused or failed the request."""
        request = Request(
            token_ids=prompt.token_ids,
            max_tokens=self._settings.max_sequence_tokens - len(prompt.token_ids),
            seed=derive_seed(self._seed, drawn.number, index),
            temperature=self._settings.temperature,
            stop=self._stop,
        )
        completion = await self._generate.generate(request)
        # An engine may serve a version just before its publish returns.
        served = max(self._meter.version, int(completion.versions[-1]))
        reward = 0.0 if completion.finish_reason.is_cut else await self._grade(drawn, completion)
        return Rollout(prompt, completion, reward, served, request.seed)
