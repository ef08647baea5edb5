"""staged-arithmetic read back from its own words by an independent reader; grading never raises."""

import re
from fractions import Fraction
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeopo.problems import final_answer, grade, load_problems, parse_number
from treeopo.problems.staged_arithmetic import LARGEST, STEPS, Difficulty, Split, generate, solution_text
from treeopo.records import Problem

CLAUSE = {
    r"(?:buys|finds) (\d+)": lambda x, k: x + k,
    r"(?:loses|sells) (\d+)": lambda x, k: x - k,
    r"(doubles) them": lambda x, _: x * 2,
    r"(triples) them": lambda x, _: x * 3,
    r"(gives half) away": lambda x, _: Fraction(x, 2),
}


def answer_from_words(question: str) -> Fraction:
    match = re.fullmatch(r"[A-Z][a-z]+ has (\d+) ([a-z]+), (.*)\. How many ([a-z]+) now\?", question)
    assert match, question
    start, items, clauses, asked = match.groups()
    assert items == asked
    value = Fraction(start)
    for clause in clauses.split(", "):
        (reading,) = [(m, f) for pattern, f in CLAUSE.items() if (m := re.fullmatch(pattern, clause))]
        found, apply = reading
        value = Fraction(apply(value, int(found[1]) if found[1].isdigit() else 0))
    return value


@given(st.sampled_from(Difficulty), st.sampled_from(Split), st.integers(0, 2**32))
def test_the_words_say_what_the_steps_say(difficulty: Difficulty, split: Split, seed: int) -> None:
    for question, steps in islice(generate(difficulty, split, seed), 5):
        assert STEPS[difficulty][0] <= len(steps) <= STEPS[difficulty][1]
        assert all(1 <= step.value <= LARGEST for step in steps)
        assert all(after.left == before.value for before, after in pairwise(steps))
        assert answer_from_words(question) == steps[-1].value
        problem = Problem("p", question, str(steps[-1].value))
        assert grade(problem, solution_text(steps)) == 1.0


@given(st.sampled_from(Difficulty), st.integers(0, 2**32))
def test_a_seed_gives_the_same_stream_again(difficulty: Difficulty, seed: int) -> None:
    streams = [list(islice(generate(difficulty, Split.TRAIN, seed), 4)) for _ in range(2)]
    assert streams[0] == streams[1]


@pytest.mark.parametrize("difficulty", Difficulty)
def test_no_chain_of_one_split_is_in_another_under_any_name(difficulty: Difficulty) -> None:
    chains = {split: {p.solution for p in load_problems(f"staged-arithmetic:{difficulty}:{split}")} for split in Split}
    training = {solution_text(steps) for _, steps in islice(generate(difficulty, Split.TRAIN, seed=1), 20_000)}
    assert not chains[Split.TRAIN] & chains[Split.TEST]
    assert not chains[Split.VALIDATION] & chains[Split.TEST]
    assert not training & (chains[Split.VALIDATION] | chains[Split.TEST])
    assert [len(chains[split]) for split in Split] == [5000, 1000, 1000]


@given(st.text())
def test_grading_never_raises(text: str) -> None:
    assert grade(Problem("p", "?", "4"), text) in (0.0, 1.0)
    final_answer(text)


@given(st.text(alphabet="0123456789-+/.,$# \n"))
def test_grading_never_raises_on_what_looks_like_numbers(text: str) -> None:
    assert grade(Problem("p", "?", text), "#### " + text) in (0.0, 1.0)


@given(st.fractions(max_denominator=10**9), st.text(alphabet=" abc£$€.", max_size=5))
def test_every_fraction_is_read_back(value: Fraction, unit: str) -> None:
    assert parse_number(f"{value} {unit}") == value


@given(st.integers(-(10**20), 10**20), st.integers(0, 99))
def test_thousands_separators_and_cents_do_not_change_the_number(whole: int, cents: int) -> None:
    assert parse_number(f"${whole:,}.{cents:02d}") == parse_number(f"{whole}.{cents:02d}")
    expected = abs(whole) + Fraction(cents, 100)
    assert abs(parse_number(f"{whole}.{cents:02d}") or Fraction(0)) == expected
