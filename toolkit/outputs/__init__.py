"""Captions in files.

In: rows of captions. Out: jsonl, csv, parquet, txt, coco or imagefolder; what a person changed there is kept. Start with `writers.py`.
"""
