"""Benchmarks as declarations: official files in, prompts of a named protocol, predictions, figures."""
