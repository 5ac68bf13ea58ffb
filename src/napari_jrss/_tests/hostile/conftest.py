"""Pipes, limits on memory and alarms are POSIX; the readers themselves are the same everywhere."""

import sys

collect_ignore_glob = ["test_*.py"] if sys.platform == "win32" else []
