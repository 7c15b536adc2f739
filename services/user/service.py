"""The user service's declaration. Pure."""

from eventcore.model.service import Projector, Service
from user.credit import DECIDER as CREDIT_DECIDER
from user.credit_reactor import REACTOR
from user.events import CATALOGUE, CREDIT, EMAIL_CLAIMS
from user.projections import credit, users

SERVICE = Service(
    name="user",
    title="User Service",
    about="Creates users and changes them, and limits their credit; shows each as it is, as it was,"
    " and how it came about.",
    port=3001,
    paths=(
        "/users",
        "/users/{id}",
        "/users/{id}/credit",
        "/users/{id}/credit-limit",
        "/users/{id}/events",
    ),
    catalogue=CATALOGUE,
    others=(EMAIL_CLAIMS, CREDIT),
    deciders=(CREDIT_DECIDER,),
    projectors=(
        Projector("user-projector", users.PROJECTION),
        Projector("credit-projector", credit.PROJECTION),
        Projector("user-credit", REACTOR),
    ),
)
