"""All faults, as data: one entry for each row."""

from tests.chaos.fault import ALL, LISTS, ORDERS, QUERIES, USERS, Fault
from tests.chaos.faults import mongodb, network, postgres, processes, rabbitmq, restored
from tests.chaos.steps import COMMITTED, CONFIRMED, VIEW_WRITTEN, WRITTEN

_PAIRS = (
    processes.killed, postgres.session_ended, rabbitmq.closed, rabbitmq.repeated, network.down,
    mongodb.killed, network.bad,
)  # fmt: skip

FAULTS = (
    Fault("1", "SIGKILL of each process", "A B E I", 27, processes.killed,
          no_answer=True),
    Fault("1b", "a projector killed 22 times on the same deliveries", "E F", 1,
          processes.killed_over_and_over, lag=30, goes_on=ALL),
    Fault("2", "SIGKILL between two steps", "A B C D E", 28, processes.killed_at_a_point),
    Fault("3", "SIGSTOP, a zombie afterwards", "C D E", 7, processes.stopped,
          hold=(1, 6), first=5, lag=10, answers=12),
    Fault("4", "SIGTERM, rolling replacement: no request fails", "A G", 9, processes.replaced,
          first=1, lag=2, goes_on=ALL, failures=False),
    Fault("5", "kill -9 of PostgreSQL", "A B C", 2, postgres.killed,
          hold=(1, 4), first=5, lag=10, goes_on=()),
    Fault("6", "kill -9 of one backend", "A B", 2, postgres.backend_killed, first=5, lag=10),
    Fault("7", "sessions ended, the relay's with its lock too", "B D", 10,
          postgres.session_ended, first=1, lag=2, hold=(0, 0.3)),
    Fault("8", "PostgreSQL stopped; all started in reverse order", "G H", 2, postgres.stopped,
          hold=(2, 4), first=5, lag=10, no_answer=True),
    Fault("9", "no connection free; events locked", "F G", 2, postgres.crowded,
          hold=(5, 5), first=1, lag=2, answers=5, goes_on=(USERS, QUERIES)),
    Fault("10", "pg_wal full, then room again", "A G", 1, postgres.disk_full,
          hold=(5, 5), first=10, lag=20),
    Fault("11", "cut after COMMIT, before its answer", "A B", 20,
          network.cut_at("postgres", "the answer of a COMMIT lost", COMMITTED),
          hold=(0, 0), first=1, lag=2),
    Fault("12", "kill -9 of RabbitMQ", "D E", 2, rabbitmq.killed,
          hold=(1, 4), first=15, lag=20, goes_on=ALL),
    Fault("13", "queues purged, deleted, unbound, virtual host reset", "E", 4, rabbitmq.emptied,
          first=10, lag=20, goes_on=ALL),
    Fault("14", "all connections or channels closed", "D E", 6, rabbitmq.closed, goes_on=ALL),
    Fault("15", "memory alarm: publishers blocked", "F G", 1, rabbitmq.alarmed,
          hold=(15, 20), lag=10, goes_on=ALL),
    Fault("16", "nacks and returns", "E", 4, rabbitmq.refused,
          hold=(1, 3), first=5, lag=10, goes_on=ALL),
    Fault("17", "cut between publish and confirm", "D E", 10,
          network.cut_at("rabbitmq", "a confirm lost", CONFIRMED), hold=(0, 0), goes_on=ALL),
    Fault("18", "kill -9 of MongoDB", "E G", 2, mongodb.killed,
          hold=(1, 4), first=5, lag=10, goes_on=(USERS, QUERIES)),
    # The stand-in answers nobody while it drops a collection: 8 s for 12,000 documents.
    Fault("19", "documents lost, set back, altered: found and mended", "E", 6, mongodb.damaged,
          hold=(0, 0), answers=8),
    Fault("20", "cut after a bulk, before its reply", "E", 10,
          network.cut_at("mongodb", "the reply to a bulk lost", WRITTEN, VIEW_WRITTEN),
          hold=(0, 0), goes_on=ALL),
    Fault("21", "MongoDB takes 2 s an operation; its disk full", "F G", 2, mongodb.slow_or_full,
          hold=(8, 8), first=5, lag=20, answers=8, goes_on=(USERS,)),
    Fault("22", "each link down or reset", "F G", 5, network.down,
          hold=(2, 4), first=2, lag=5),
    Fault("23", "each link a black hole", "G H I", 5, network.silent,
          hold=(12, 15), first=5, lag=10, answers=12),
    Fault("24", "each link late, narrow, sliced", "D G", 5, network.bad,
          hold=(4, 6), first=2, lag=10, answers=12),
    Fault("25", "deliveries repeated and shuffled", "D E", 3, rabbitmq.repeated, lag=10,
          goes_on=ALL),
    Fault("26", "poison in the queues", "F", 6, rabbitmq.poisoned, hold=(0, 0.2), lag=2,
          goes_on=ALL),
    Fault("27", "one process with a wrong clock", "C G", 5, processes.wrong_clock,
          hold=(3, 5), first=10, lag=15, no_answer=True),
    Fault("28", "out of memory; out of descriptors", "I", 2, processes.starved,
          hold=(1, 3), first=5, lag=10),
    Fault("29", "a tenth of a core", "G", 1, processes.little_cpu,
          hold=(6, 6), lag=10, goes_on=ALL),
    Fault("30", "clients that never finish", "F G I", 2, processes.slow_clients,
          hold=(3, 5), first=1, lag=2, answers=12, no_answer=True),
    Fault("31", "two faults at once; links down one by one", "A B C D E F G H I", 5,
          network.at_once(*_PAIRS), hold=(1, 3), first=10, lag=30, answers=12, no_answer=True),
    Fault("32", "an older backup restored; replicas with other settings", "C E", 2,
          restored.older_or_mixed, hold=(2, 3), first=5, lag=10),
)  # fmt: skip
"""In the order of the table."""

SHORT = {"2": 3, "11": 3, "17": 3, "20": 3, "25": 2, "26": 3}
"""The rows of the short form, and how often each."""

__all__ = ["FAULTS", "LISTS", "ORDERS", "SHORT"]
