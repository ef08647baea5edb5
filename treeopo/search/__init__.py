"""The teacher's Monte Carlo tree search.

settings.py   what a search may spend;  uct.py, tree.py, steps.py, wording.py, votes.py, teacher.py   its parts
actions.py    how steps may be asked for, under the prompts in templates/
problem.py    the search of one problem;  build.py   of many at once;  report.py   what came out

Importing this package imports none of them, so that settings can be read without an event loop.
"""
