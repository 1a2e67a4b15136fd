"""The Trainer and what it lacks.

In: a cache and a model. Out: a trained model and its log. Start with `trainer.py`.
"""
