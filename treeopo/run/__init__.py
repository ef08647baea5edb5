"""One training run: what it keeps on disk, and its stages while it is under way.

directory.py   RUN/ and its settings
start.py       load and start what a run needs, then hand over to its loop
loop.py        the stages over learner and engine, and what follows each step
models.py      which weights a name means (model, adapter or run), and an engine that serves them
card.py        the README beside trained weights
signals.py     stopping between two steps
"""
