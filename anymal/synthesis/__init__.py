"""Instruction data written by an open LLM that reads text-only descriptions of media (paper section 2)."""
