"""The manager under a virtual clock: simulated workers and integrations, faults and interleavings by seed, invariants at every step.

There are two kinds of scenarios. In dense ones up to 200 jobs meet many faults. A job takes about 1 ms of a core, half in the package.
In long ones one manager lives through up to 20,000 jobs with few faults, and rests after every thousand: nothing may have grown since the
first rests, neither the number of objects of a type nor the entries of a container. There a job takes about 0.4 ms.

`python -m tests.simulation --jobs 1000000 --seed 7000000 --keep-going` simulates so many jobs, from a seed on, prints each seed that
fails, and says at the end what a job took. `--long` chooses long scenarios: ten million jobs take `--long --jobs 10000000 --seed 1000000
--keep-going`, and about an hour and a half on one core. Several may run beside each other. `--only --seed 136` replays one seed, with its
trace. CI simulates 108,000 jobs in dense scenarios and 100,000 in long ones; `pytest -m slow` a million: see `RANGES` and `test_more`.

By hand, 340,000 more were simulated in dense scenarios, 24,000 to 49,000 each from the seeds 20000000, 30000000, 40000000, 50000000 and
80000000 on, and 122,000 from 0 on. `test_what_a_seed_has_found_is_mended` holds what they found.

In long scenarios 2,600,000 were simulated by hand, from the seeds 0, 1000000, 10000000, 20000000, 30000000, 40000000, 50000000 and 60000000
on. Seed 30000002 found that a younger job was prefetched in place of one that was just being taken back: a worker's last words, which are
heard before a job is cancelled, had ended the job before.

The first long lives, seeds 1002, 3001 and 4005, found that a job which the resource manager had refused, and which ran all the same on a
worker that had its plugin loaded, was never forgotten: `test_what_was_asked_about_a_job_is_forgotten_when_it_has_run_without`.
"""
