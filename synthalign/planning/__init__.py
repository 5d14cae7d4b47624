"""What ``synthalign plan`` does: it reads the configuration of a run and reckons it, loading no weights."""
