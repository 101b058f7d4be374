"""Safety classifiers (paper section 4), the guard that asks them, and what is measured of both."""
