"""The Arrow data set that training reads.

In: `ImageRecord`s. Out: a folder that `datasets.load_from_disk` opens: uint8 pixel_values and labels. Start with `schema.py`.
"""
