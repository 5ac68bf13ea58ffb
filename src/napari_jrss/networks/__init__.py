"""Networks and spatial transforms."""
