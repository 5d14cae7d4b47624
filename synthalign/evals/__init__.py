"""Benchmarks of the aligned model, and what runs, records and compares them.

A benchmark is a folder with one class that fits ``synthalign.types.Eval``; a config names it by its class_path.
"""
