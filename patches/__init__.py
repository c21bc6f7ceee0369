"""Patches for llama-cpp-python, and what applies and builds them. See README.md beside this file."""
