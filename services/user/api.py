"""The user service's calls: what each takes, does and answers."""

from typing import Annotated

from pydantic import BaseModel, Field

from eventcore.command import handle, new_id
from eventcore.projection import Document
from eventcore.query import Views
from eventcore.store import Answer, Store
from eventcore.web import Incoming, Input, Reply, Routes, add_queries, answer, reply
from user.projections.users import shown
from user.user import DECIDER, ChangeUser, CreateUser, User

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern="^[^\\x00-\\x1f\\x7f]*[^\\x00-\\x20\\x7f][^\\x00-\\x1f\\x7f]*$",
        examples=["Ada Lovelace"],
    ),
]
Email = Annotated[
    str,
    Field(
        max_length=254,
        pattern="^[^@\\x00-\\x20\\x7f]+@[^@\\x00-\\x20\\x7f]+$",
        examples=["ada@example.com"],
    ),
]


class NewUser(Input):
    """A user to be created."""

    name: Name
    email: Email


class UserChange(Input):
    """What to change; what is left out stays as it is."""

    name: Name | None = None
    email: Email | None = None


class UserAccepted(BaseModel):
    """The user is recorded, and will be readable within moments."""

    userId: str


class UserShown(BaseModel):
    """A user."""

    id: str = Field(alias="_id")
    userId: str
    name: str
    email: str


def routes(store: Store, users: Views) -> Routes:
    """All routes of the user service."""
    route = Routes("users")

    @route(
        "POST", "/users", "Create a user", {202: UserAccepted},
        body=NewUser, headers=("Idempotency-Key",), problems=(409,),
    )  # fmt: skip
    def create_user(incoming: Incoming[NewUser, None]) -> Reply:
        user_id = new_id()
        command = CreateUser(incoming.body.name, incoming.body.email)
        return reply(
            handle(
                store, DECIDER, user_id, command, incoming.call,
                lambda _, version: answer({"userId": str(user_id)}, version, status=202),
                creates=True,
            )
        )  # fmt: skip

    @route(
        "PUT", "/users/{id}", "Change a user's name or email", {200: UserShown},
        body=UserChange, headers=("Idempotency-Key", "If-Match"), problems=(409, 412),
    )  # fmt: skip
    def change_user(incoming: Incoming[UserChange, None]) -> Reply:
        command = ChangeUser(incoming.body.name, incoming.body.email)

        def show(user: User | None, version: int) -> Answer:
            assert user
            document: Document = {"_id": str(incoming.id), "name": user.name, "email": user.email}
            return answer(shown(document), version)

        return reply(handle(store, DECIDER, incoming.id, command, incoming.call, show))

    add_queries(route, "/users/{id}", "/users/{id}/events", users, shown, UserShown)
    return route
