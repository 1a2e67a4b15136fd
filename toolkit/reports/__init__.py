"""Pages to look at.

In: captions, metrics, logs. Out: HTML pages and model cards, each one file. Start with `html.py`.
"""
