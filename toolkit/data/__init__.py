"""From the disk to an upright RGB image with its captions.

In: image files, here or at URLs, and annotation sets of any format. Out: `ImageRecord`s and uint8 pixels. Start with `images.py` and `annotations/`.
"""
