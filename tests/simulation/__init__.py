"""The manager under a virtual clock: simulated workers and integrations, faults and interleavings by seed, invariants at every step."""
