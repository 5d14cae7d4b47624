"""Judges: who rates open answers, each in a file of its own, since some of them load models."""
