"""The apps of the systems that `rivals.py` measures, each in a file that imports no other system."""
