"""Reward models, one file each: of images against their prompts, and of responses."""
