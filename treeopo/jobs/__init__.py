"""What each command does, one file a command; each returns when its output is complete on disk.

build.py      problems ─▶ search (teacher's engine) ─▶ tree store
train.py      tree store ─▶ start states ─▶ student's engine ─▶ grader ─▶ advantages ─▶ learner ─▶ publish
evaluate.py   problems ─▶ engine ─▶ grader ─▶ scores with intervals
export.py     a run's adapter merged into its base
demo.py       all of them on the embedded default, ending in a table

torch and vLLM are imported when a function first needs them.
"""
