"""The order service's declaration. Pure."""

from eventcore.model.service import Projector, Service
from order import credit_saga
from order.events import CATALOGUE, ORDER_SAGA
from order.projections import customers, known_users, orders

SERVICE = Service(
    name="order",
    title="Order Service",
    about="Places orders of known users and cancels them; shows and lists them as they are.",
    port=3002,
    paths=(
        "/orders",
        "/orders/batch",
        "/orders/{id}/cancel",
        "/orders/{id}/events",
        "/queries/orders",
        "/queries/orders/{id}",
        "/queries/customers",
        "/queries/customers/{id}",
    ),
    catalogue=CATALOGUE,
    others=(ORDER_SAGA,),
    sagas=(credit_saga.SAGA,),
    projectors=(
        Projector("order-projector", orders.PROJECTION),
        # sweep interval shorter than KNOWN_USER_WAIT
        Projector("order-user-sync", known_users.PROJECTION, {"SWEEP_INTERVAL": "0.5"}),
        Projector("order-customers", customers.VIEW),
        Projector("order-saga", credit_saga.REACTOR),
    ),
)
