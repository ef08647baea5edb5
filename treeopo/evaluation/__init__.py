"""Accuracy of a model on a problem set, with intervals."""
