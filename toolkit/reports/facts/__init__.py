"""What `toolkit inspect` says of a cache, of annotations, of a model or a run: plain values, made without torch.

census.py       captions and pictures, counted
caches.py       a finished cache
annotated.py    raw annotations and their images
models.py       a captioner's folder, the log of a run
words.py        the same for people
"""
