"""Captions scored against reference captions.

In: hypotheses and references. Out: metrics with confidence intervals. Start with `judge.py`.
"""
