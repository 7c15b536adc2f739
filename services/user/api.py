"""The user service's calls: what each takes, does and answers."""

from typing import Annotated

from pydantic import BaseModel, Field

from eventcore.command import handle
from eventcore.ids import new_id
from eventcore.model.projection import Document
from eventcore.query import Views
from eventcore.store.port import Answer, Store
from eventcore.web.inputs import EMAIL, VISIBLE, Input
from eventcore.web.queries import add_queries
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, answer
from user.projections.users import shown
from user.user import DECIDER, ChangeUser, CreateUser, User

Name = Annotated[str, Field(min_length=1, max_length=100, examples=["Ada Lovelace"]), VISIBLE]
Email = Annotated[str, Field(max_length=254, examples=["ada@example.com"]), EMAIL]


class NewUser(Input):
    """A user to be created."""

    name: Name
    email: Email


class UserChange(Input):
    """The fields to change; a field that is left out stays as it is."""

    name: Name | None = None
    email: Email | None = None


class UserAccepted(BaseModel):
    """The user is recorded and readable at once."""

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

    @route("POST", "/users", "Create a user", {202: UserAccepted}, body=NewUser)
    def create_user(incoming: Incoming[NewUser, None]) -> Answer:
        user_id = new_id()
        command = CreateUser(incoming.body.name, incoming.body.email)

        def accept(_: User | None, __: int) -> Answer:
            return answer({"userId": str(user_id)}, status=202)

        return handle(store, DECIDER, user_id, command, incoming.call, accept, creates=True)

    @route("PUT", "/users/{id}", "Change name or email", {200: UserShown}, body=UserChange)
    def change_user(incoming: Incoming[UserChange, None]) -> Answer:
        command = ChangeUser(incoming.body.name, incoming.body.email)

        def show(user: User | None, __: int) -> Answer:
            assert user
            document: Document = {"_id": str(incoming.id), "name": user.name, "email": user.email}
            return answer(shown(document))

        return handle(store, DECIDER, incoming.id, command, incoming.call, show)

    add_queries(route, "/users/{id}", users, shown, UserShown, "/users/{id}/events")
    return route
