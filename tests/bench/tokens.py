"""P30: what consistency tokens take of a command's time."""

from collections.abc import Sequence
from time import process_time
from types import SimpleNamespace

from eventcore.consistency import Epoch, Token
from eventcore.ids import new_id
from eventcore.model.event import token_of
from tests.bench.bed import Bed, Size
from tests.bench.rows import Row, Values, require

COMMANDS = 20_000


class Tokens:
    """Measures the CPU time of what a command calls for its token, without a server."""

    def __init__(self, _bed: Bed, _size: Size) -> None:
        store = SimpleNamespace(progress=lambda _: SimpleNamespace(epoch=str(new_id())))
        self._epoch = Epoch(store, "order")
        self._seen = str(Token({("user", str(new_id())): 1 for _ in range(7)}, {"user": "e" * 36}))

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row("P30", "token of a command that brings none", lambda: self._command(""), (" µs",)),
            Row("P30", "the same, bringing one", lambda: self._command(self._seen), (" µs",)),
        )

    def _command(self, given: str) -> Values:
        id, text, began = new_id(), "", process_time()
        for _ in range(COMMANDS):
            seen = Token.parse(given) if given else None
            self._epoch.require(seen)
            text = self._epoch.answered(token_of("order", id, 1), seen)
        took = (process_time() - began) / COMMANDS * 1e6
        require(Token.parse(text).version("order", id) == 1, "the token names the version")
        return (took,)
