"""The appends to the saga of an order, which share the transaction of the order's own event."""

from collections.abc import Sequence
from uuid import UUID

from eventcore.command import append_of
from eventcore.model.saga import Cancel
from eventcore.store.port import Append, Store
from order import credit_saga
from order.order import CancelOrder, PlaceOrder


def saga_of(store: Store, order_id: UUID, command: PlaceOrder) -> Sequence[Append]:
    """The saga that a pending order waits for, with its first step and deadline."""
    if not command.pending:
        return []
    first = credit_saga.start(order_id, command)
    saga, deadline = credit_saga.DECIDER, credit_saga.deadline
    return append_of(store, saga, order_id, first, creates=True, deadline=deadline)


def cancel_saga(store: Store, order_id: UUID, command: CancelOrder) -> Sequence[Append]:
    """The appends of a cancelled order to its saga: none if that is cancelled already."""
    saga, deadline = credit_saga.DECIDER, credit_saga.deadline
    cancel = Cancel(command.reason)
    return [e for e in append_of(store, saga, order_id, cancel, deadline=deadline) if e.events]
