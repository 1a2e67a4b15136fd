"""Environment variables that toolkit reads and that are no option's."""

STORES_GB = "TOOLKIT_STORES_GB"  # how many gigabytes of copies of what is at URLs are kept (toolkit/runtime/copies.py)
