"""Reward models of images against their prompts, and of responses: one file each, and three for what several share."""
