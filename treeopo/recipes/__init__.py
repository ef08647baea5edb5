"""From the names in `treeopo.methods` to objects: the training data and the losses of one run.

batches.py   what a method learns from, and how its batches are made
losses.py    what its loss is made of
"""
