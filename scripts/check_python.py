"""Stops the set-up early, with one clear line, where Python is too old. Runs on any Python 3."""

import sys

if sys.version_info < (3, 11):
    version = ".".join(str(part) for part in sys.version_info[:3])
    sys.exit("Cutlayer needs Python 3.11 or newer, this is " + version + "\n  fix: make PYTHON=python3.12 ...")
