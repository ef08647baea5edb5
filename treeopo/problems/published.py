"""The benchmarks known by name, where the Hugging Face hub keeps them."""

from dataclasses import dataclass
from typing import Final

from treeopo.problems.layouts import GSM8K, GSM_SYMBOLIC, MATH, MATH_500, Layout

_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@dataclass(frozen=True, slots=True)
class Published:
    """A data set of the hub. `variants` maps a name to the configurations read for it, in order; "" is the whole set,
    and the first one is the default.
    """

    repository: str
    layout: Layout
    splits: tuple[str, ...]
    variants: dict[str, tuple[str | None, ...]]

    @property
    def grammar(self) -> str:
        names = [name for name in self.variants if name]
        return "".join(f"[:{'|'.join(choices)}]" for choices in (names, self.splits) if choices)


PUBLISHED: Final = {
    "gsm8k": Published("openai/gsm8k", GSM8K, ("train", "test"), {"": ("main",)}),
    "gsm-symbolic": Published(
        "apple/GSM-Symbolic", GSM_SYMBOLIC, ("test",), {name: (name,) for name in ("main", "p1", "p2")}
    ),
    "math": Published(
        "EleutherAI/hendrycks_math",
        MATH,
        ("train", "test"),
        {"": _SUBJECTS, **{subject: (subject,) for subject in _SUBJECTS}},
    ),
    "math500": Published("HuggingFaceH4/MATH-500", MATH_500, ("test",), {"": (None,)}),
}
