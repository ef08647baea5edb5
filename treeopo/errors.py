"""What can go wrong, drawn before it was coded.

    TreeopoError
    ├── InputError (ValueError)     the user can mend it: what was wrong, where, what to do
    │   ├── ConfigError             a setting, or two settings together
    │   ├── ProblemError            a problem file or a row of it
    │   ├── ModelError              a model, adapter or tokenizer that cannot be used
    │   ├── RunError                a run directory that cannot be used
    │   ├── TreeError               arrays that are not a tree
    │   └── GroupError              samples, rewards or constraints of a group
    ├── GraderError (RuntimeError)  the processes that grade cannot be started, or a grader fails again and again
    ├── EngineError (RuntimeError)  an inference engine failed
    │   └── EngineDeadError         ... and will not answer again
    ├── DivergedError (RuntimeError) training met losses that are not finite, again and again
    └── OutOfMemoryError (RuntimeError) a training step does not fit the memory, however it is cut

The tree store has its own hierarchy (`treeopo_storage.errors`), because it is importable alone.
The command line prints any of these as one line and exits with status 2 (input) or 1 (others).
"""


class TreeopoError(Exception):
    """Base of every error that treeopo raises on purpose."""


class InputError(TreeopoError, ValueError):
    """Something the user gave cannot be used; the message says what, where and what to do."""


class ConfigError(InputError):
    """A setting, or a combination of settings, is impossible."""


class ProblemError(InputError):
    """A problem file, or one row of it, cannot be read."""


class ModelError(InputError):
    """A model, adapter or tokenizer cannot be loaded or does not fit its counterpart."""


class RunError(InputError):
    """A run directory is missing, incomplete or belongs to other settings."""


class TreeError(InputError):
    """Arrays do not describe a tree with parents before their children."""


class GroupError(InputError):
    """The samples, rewards or order constraints of a group are unusable."""


class GraderError(TreeopoError, RuntimeError):
    """The processes that grade answers cannot be started, or a grader of the user's fails again and again."""


class EngineError(TreeopoError, RuntimeError):
    """An inference engine refused or failed a request."""


class EngineDeadError(EngineError):
    """The engine process is gone; every further request would fail."""


class DivergedError(TreeopoError, RuntimeError):
    """Loss or gradient were infinite or not a number several steps in a row."""


class OutOfMemoryError(TreeopoError, RuntimeError):
    """A training step does not fit the memory, however it is cut."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds: the bounds check of the settings classes."""
    if not condition:
        raise ConfigError(message)


def described(error: BaseException) -> str:
    """An exception in one short line."""
    return shortened(f"{type(error).__name__}: {error}".rstrip(": "))


def shortened(text: str, most: int = 300) -> str:
    """`text` in one line of at most `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
