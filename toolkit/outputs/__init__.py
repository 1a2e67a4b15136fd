"""Captions in files.

In: rows of captions. Out: jsonl, csv, parquet, txt, coco or imagefolder; what a person changed there is kept; a DataFrame of
what was written. Start with `writers.py`.
"""
