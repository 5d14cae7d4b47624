"""Pages to look at: what a run made, in one file that opens anywhere."""
