"""The training commands, and what of Lightning's had to be told apart from its defaults for them."""

from synthalign.training.command_line import run as run
