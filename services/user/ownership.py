"""The guard of the user service's calls: a user is shown to itself alone."""

from typing import Any

from eventcore.web.request import Incoming


def own_user(incoming: Incoming[Any, Any]) -> None:
    """The guard of a call whose path has a user's id."""
    incoming.caller.require(str(incoming.id), f"user {incoming.id}")
