"""From pixels to captions.

In: images or uint8 pixels. Out: `CaptionResult`s. Start with `captioner.py`; the decoder is in `generate.py`.
"""
