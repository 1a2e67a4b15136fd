"""A captioner and its parts.

In: names of encoders, decoders and captioners. Out: `VisionEncoderDecoderModel`s with tokenizer and image processor. Start with `loading.py`.
"""
