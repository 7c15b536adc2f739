"""MongoDB's address, logins and errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, quote_plus

from bson.errors import BSONError
from pymongo import MongoClient, errors

from eventcore.errors import CannotApply, Misconfigured, ReadModelUnavailable
from eventcore.model.projection import Document
from eventcore.settings import Server

SOCKET_TIMEOUT, WRITE_TIMEOUT = 4000, 2500
"""Milliseconds that an answer may take, and that a majority may take to confirm a write: less, so
that a lagging secondary is an answer of the server and not a lost connection."""


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours; duplicate keys pass, they are answers."""
    try:
        yield
    except (errors.BulkWriteError, errors.DuplicateKeyError):
        raise
    except (errors.DocumentTooLarge, BSONError, OverflowError) as error:
        raise CannotApply(f"MongoDB cannot store the document: {error}") from error
    except (errors.ConnectionFailure, errors.ExecutionTimeout, errors.WTimeoutError) as error:
        raise ReadModelUnavailable(f"MongoDB cannot be reached: {_short(error)}") from error
    except errors.OperationFailure as error:
        raise ReadModelUnavailable(f"MongoDB refused an operation: {_short(error)}") from error
    except errors.PyMongoError as error:
        raise ReadModelUnavailable(f"MongoDB failed: {_short(error)}") from error
    except OSError as error:
        raise Misconfigured(f"MONGODB_CA_FILE cannot be used: {error}") from error


def _short(error: Exception) -> str:
    return str(error).split(", Timeout:")[0].split(", full error:")[0][:300]


def to_url(server: Server, password: str) -> str:
    who = f"{quote_plus(server.user)}:{quote_plus(password)}@" if server.user else ""
    options = [option for option in (server.options, "tls=true" if server.tls else "") if option]
    if server.tls and server.ca_file:
        options.append(f"tlsCAFile={quote_plus(server.ca_file)}")
    return f"mongodb://{who}{server.host}:{server.port}/{server.name}?{'&'.join(options)}"


def make_login(admin: Server, database: str, user: str, password: str, role: str) -> None:
    """Make or mend a login that has one of MongoDB's built-in roles in `database`.

    `admin` may manage users. The login is kept in the `authSource` of the options, or else in the
    database itself. Raises ReadModelUnavailable.
    """
    home = dict(parse_qsl(admin.options)).get("authSource", database)
    client: MongoClient[Document] = MongoClient(
        to_url(admin, admin.password.read()), serverSelectionTimeoutMS=1500, socketTimeoutMS=6000
    )
    with translated(), client:
        users = client[home].command("usersInfo", user)["users"]
        act = "updateUser" if users else "createUser"
        client[home].command(act, user, pwd=password, roles=[{"role": role, "db": database}])
