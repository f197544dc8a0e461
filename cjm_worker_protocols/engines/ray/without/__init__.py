"""Modules that Ray's own processes find in place of slow ones that they never use.

Only a Ray that an engine starts has this folder on its path.
"""
