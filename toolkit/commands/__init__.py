"""The commands, one file each.

In: an options dataclass. Out: a `Summary`. Each file holds one function of the command's name.
"""
