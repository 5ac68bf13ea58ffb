"""The paper's experiments as a command: protocols, comparators, tables and figures."""
