"""The training loop, for one ticket and for many in lockstep."""
