"""Read models in MongoDB: documents, checkpoints with their lease, and the parked list.

Prices are kept as Decimal128, exactly. A majority acknowledges every write, in its journal.

    <collection>   the documents of a generation: _id, version, the projection's own fields, and
                   projectedAt, when it was written, which `projected_at` alone shows
    generations    one a projection: the number of the generation that serves, and the newest one's
    checkpoints    one a generation: the event it stands on (position, eventId), the furthest event
                   that was folded, coveredAt, the epoch of the store, why it is halted, and who
                   holds the lease, with the lease's own epoch
    parked         one a stream that a generation has set aside: no payload, only where and why
    skips          one an event that all generations of a projection pass over
    verifications  one a projection: when it was last compared with the log, and the result
"""

from eventcore.readmodel.bookkeeping import MongoBookkeeping
from eventcore.readmodel.documents import MongoDocuments


class Mongo(MongoDocuments, MongoBookkeeping):
    """A ReadModel on one MongoDB database: documents and bookkeeping share a connection pool."""
