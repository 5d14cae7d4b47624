"""The parts of dpo_step.py: one training step of several trainers, on one batch, side by side."""
