"""A simulated annotator works through a cohort with the program's own commands, and is timed."""
