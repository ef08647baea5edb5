"""How many examples a property test draws: Hypothesis profiles, chosen by HYPOTHESIS_PROFILE.

No profile has a deadline: a test never asserts times, and an example that waits for a compiler proves nothing. Only
`thorough` draws anew each time: elsewhere a failure is the change's, not the draw's.
"""

import os

from hypothesis import settings

EXAMPLES = {"fast": 20, "default": 100, "thorough": 1000}


def load_profile() -> None:
    """Register the profiles and load the one the environment names."""
    for name, count in EXAMPLES.items():
        settings.register_profile(name, max_examples=count, deadline=None, derandomize=name != "thorough")
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def examples(times: float, parent: settings | None = None) -> settings:
    """`times` as many examples as the profile in force draws: for a larger space, or for a dearer example."""
    return settings(parent, max_examples=max(1, round(times * settings().max_examples)))
