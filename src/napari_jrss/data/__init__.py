"""Scans in, scans out: files, label tables, the training grid and the project's cache."""
