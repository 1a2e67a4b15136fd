"""Captions judged by what people said.

In: hypotheses and references. Out: metrics with intervals. Start with `judge.py`.
"""
