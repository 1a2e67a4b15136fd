"""What `toolkit inspect` reports about a cache, annotations, a model or a run: plain values, made without torch.

stats.py        counts of captions, duplicate and near-duplicate images
caches.py       a finished cache
annotated.py    raw annotations and their images
models.py       a model's folder, the log of a run
words.py        the same as a table
"""
