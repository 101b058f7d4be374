"""Limits of a server that nobody set others for: `anymal serve` and MLflow's have the same."""

ROWS = 8
"""Answers decoded together."""
WAITING = 32
"""Requests that may wait beside them."""
SECONDS = 120.0
"""For an answer, waiting and checks included."""
MAX_NEW_TOKENS = 1024
"""The most that a caller may ask for."""
