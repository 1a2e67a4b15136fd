"""This machine and what it can reach: finished files and locks, hashes, progress, worker processes, Ray, object stores.

In: paths, functions and tasks. Out: files that are whole or not there. Start with `files.py`.
"""
