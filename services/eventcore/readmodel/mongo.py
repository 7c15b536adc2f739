"""Read models in MongoDB: documents, checkpoints with their lease, and the parked list.

Prices are kept as Decimal128, exactly. A majority acknowledges every write, in its journal.

    <collection>   the documents of a generation: _id, version, the projection's own fields, and
                   projectedAt, the time of the write, which only `projected_at` shows
    generations    for each projection: the numbers of the serving generation and of the newest
    checkpoints    for each generation: the event of the checkpoint (position, eventId), the
                   furthest folded event, coveredAt, the epoch of the store, the reason of a halt,
                   and the holder of the lease with the lease's own epoch
    parked         for each stream that a generation has parked: version and error, no payload
    skips          for each event that all generations of a projection pass over
    verifications  for each projection: the time and the result of the last comparison with the log
    depths         for each projection: the messages in its queue and its dead letters, and when
"""

from eventcore.readmodel.bookkeeping import MongoBookkeeping
from eventcore.readmodel.documents import MongoDocuments


class Mongo(MongoDocuments, MongoBookkeeping):
    """A ReadModel on one MongoDB database: documents and bookkeeping share a connection pool."""
