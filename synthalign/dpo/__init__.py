"""Direct preference optimisation: a batch's layout, log-probs, losses and the policy."""
