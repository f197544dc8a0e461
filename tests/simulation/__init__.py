"""The manager under a virtual clock: simulated workers and integrations, faults and interleavings by seed, invariants at every step.

`python -m tests.simulation --jobs 1000000 --seed 7000000 --keep-going` simulates so many jobs, from a seed on, prints each seed that
fails, and says at the end what a job took: about 1 ms of a core, half of it in the package. Several may run beside each other.
`--only --seed 136` replays one seed, with its trace. CI simulates 108,000 jobs: see `RANGES`.

By hand, 340,000 more were simulated, 24,000 to 49,000 each from the seeds 20000000, 30000000, 40000000, 50000000 and 80000000 on, and
122,000 from 0 on. `test_what_a_seed_has_found_is_mended` holds what they found.
"""
