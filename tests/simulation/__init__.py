"""The manager under a virtual clock: simulated workers and integrations, faults and interleavings by seed, invariants at every step.

`python -m tests.simulation --jobs 1000000 --seed 7000000 --keep-going` simulates so many jobs, from a seed on, and prints each seed that
fails; several may run beside each other. `--only --seed 136` replays one seed, with its trace. CI simulates 108,000 jobs: `RANGES`.
"""
