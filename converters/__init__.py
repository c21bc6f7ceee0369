"""Checkpoint to GGUF converters. None of them needs torch."""
