"""The user service's calls: what each takes, does and answers."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Annotated, TypeAlias
from uuid import UUID

from pydantic import BaseModel, Field

from eventcore.command import append_of, handle
from eventcore.errors import Invalid
from eventcore.ids import new_id
from eventcore.model.projection import Document
from eventcore.query import Views
from eventcore.store.port import Answer, Append, Store, Stream
from eventcore.web.caller import Caller
from eventcore.web.inputs import EMAIL, VISIBLE, Input
from eventcore.web.queries import add_queries
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, answer, in_handler
from user.credit_api import add_credit
from user.email_claim import DECIDER as CLAIM
from user.email_claim import Claim, ClaimCommand, Release, stream_id
from user.ownership import own_user
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


Also: TypeAlias = Callable[[User | None, User | None], Sequence[Append]]


def routes(
    store: Store,
    users: Views,
    credit: Views,
    *,
    unique_emails: bool = False,
    credit_limit: Decimal | None = None,
) -> Routes:
    """All routes of the user service; with `unique_emails` no two users have one address.

    `credit_limit` is the limit of users for whom none was set; None: unlimited.
    """
    route = Routes("users")

    claims = partial(claims_of, store) if unique_emails else lambda _: None
    _add_commands(route, store, claims)
    add_queries(route, "/users/{id}", users, shown, UserShown, "/users/{id}/events")
    add_credit(route, store, users, credit, credit_limit)
    return route


def _add_commands(route: Routes, store: Store, claims: Callable[[UUID], Also | None]) -> None:

    @route("POST", "/users", "Create a user", {202: UserAccepted}, body=NewUser, guard=in_handler)
    def create_user(incoming: Incoming[NewUser, None]) -> Answer:
        user_id = _new_user_id(store, incoming.caller)
        command = CreateUser(incoming.body.name, incoming.body.email)

        def accept(_: User | None, __: int) -> Answer:
            return answer({"userId": str(user_id)}, status=202)

        return handle(
            store, DECIDER, user_id, command, incoming.call, accept,
            creates=True, also=claims(user_id),
        )  # fmt: skip

    @route(
        "PUT", "/users/{id}", "Change name or email", {200: UserShown}, body=UserChange,
        guard=own_user,
    )  # fmt: skip
    def change_user(incoming: Incoming[UserChange, None]) -> Answer:
        command = ChangeUser(incoming.body.name, incoming.body.email)

        def show(user: User | None, __: int) -> Answer:
            assert user
            document: Document = {"_id": str(incoming.id), "name": user.name, "email": user.email}
            return answer(shown(document))

        return handle(
            store, DECIDER, incoming.id, command, incoming.call, show, also=claims(incoming.id)
        )


def _new_user_id(store: Store, caller: Caller) -> UUID:
    """The id of a user to be created: that of the caller, unless it creates users for others.

    Raises Invalid.
    """
    if not caller.is_limited:
        return new_id()
    if not caller.user:
        raise Invalid("Your token names no user: its claim has no UUID. Nothing was written.")
    user_id = UUID(caller.user)
    if store.read_stream(Stream(DECIDER.aggregate_type, user_id), 0, 1):
        raise Invalid(f"You are the user {user_id}, who was created before.", "User exists")
    return user_id


def claims_of(store: Store, user_id: UUID) -> Also:
    """The appends to the claims of e-mail addresses that a change of a user takes."""

    def step(email: str | None, command: ClaimCommand) -> Sequence[Append]:
        return append_of(store, CLAIM, stream_id(email), command) if email else []

    def changes(before: User | None, after: User | None) -> Sequence[Append]:
        old, new = (user.email if user else None for user in (before, after))
        if old and new and stream_id(old) == stream_id(new):
            return []
        return [*step(old, Release(str(user_id))), *step(new, Claim(str(user_id)))]

    return changes
