"""The whole system in one thread, on servers that are only simulated, by one seed.

What runs is the real code down to the driver calls: deciding, appending, settling, relaying,
confirming, folding, guarding, sweeping, parking. The servers below it are small models of what
PostgreSQL, RabbitMQ and MongoDB promise, and of all that they do not: commits that come late,
answers that are lost, confirms out of order, bulks that are half done. Processes are killed at
any call of theirs. Each choice comes from the seed, so a seed is a run that can be repeated.

    python -m tests.sim --seeds 10000    many runs; the rare states that they reached
    python -m tests.sim --seed 7         one run, step by step
    python -m tests.sim --mutants        the same with a safety of the code taken out, each in turn
"""
