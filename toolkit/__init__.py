"""toolkit: from a folder of captioned images to a fine-tuned captioner, and captions for the rest."""

__version__ = "0.1.0"
