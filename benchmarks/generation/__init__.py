"""The parts of synthesis.py: the same questions answered by several contenders, side by side."""
