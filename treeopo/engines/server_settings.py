"""How to treat the inference servers that a run is given by URL. Needs no HTTP client."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from treeopo.errors import ConfigError, require


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits and patience towards each server of `engine.urls`."""

    api_key_variable: str = "TREEOPO_API_KEY"
    """The environment variable that holds the API key, where the server wants one."""

    requests_per_second: float | None = None
    """A rate limit to each server; none by default."""

    busy_seconds: float = 600.0
    """How long a server may turn requests away (429, 503) before it counts as dead."""

    lost_seconds: float = 10.0
    """How long a server may be unreachable before it counts as dead."""

    answer_seconds: float = 600.0
    """Silence after which a connection counts as lost."""

    def __post_init__(self) -> None:
        rate = self.requests_per_second
        require(rate is None or 0 < rate < float("inf"), f"requests_per_second is {rate}; it must be positive")
        for name in ("busy_seconds", "lost_seconds", "answer_seconds"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be positive")


def base_url(url: str) -> str:
    """`http://host:8000`, with or without the `/v1` that OpenAI's clients want, as it is used here.

    Raises:
        ConfigError: it is not such a URL, or may have secrets in it (settings are written down).
    """
    try:
        parsed = urlsplit(url.strip())
        usable = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ConfigError("the URL of a server is written as http://host:8000 (--engine, engine.urls)")
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise ConfigError(
            f"{parsed.scheme}://{parsed.hostname}: leave name, password and query out of a server's URL, which is "
            "written down; a key goes into the environment (TREEOPO_API_KEY)"
        )
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
