"""Parts of benchmarks/pope.py."""
