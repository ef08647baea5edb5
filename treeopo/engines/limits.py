"""What fits into an engine."""

from treeopo.errors import EngineError


def check_room(prompt_tokens: int, max_tokens: int, max_model_tokens: int) -> None:
    """Refuse a request that vLLM would cut in silence.

    Raises:
        EngineError: prompt and completion together may exceed `max_model_tokens`.
    """
    room = max_model_tokens - prompt_tokens
    if max_tokens > room:
        raise EngineError(
            f"a prompt of {prompt_tokens} tokens leaves room for {room} of the {max_tokens} asked for; "
            f"raise the engine's {max_model_tokens} or lower the request"
        )
