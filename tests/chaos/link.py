"""A link of the system: all its proxies, hurt and healed as one."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.proxy import Flow, Proxy


@dataclass(frozen=True)
class Link:
    """One of the system's links, which may have several proxies: one a server behind it."""

    name: str
    proxies: Sequence[Proxy]

    def down(self) -> None:
        """See Proxy."""
        for proxy in self.proxies:
            proxy.down()

    def reset(self) -> None:
        """See Proxy."""
        for proxy in self.proxies:
            proxy.reset()

    def hole(self) -> None:
        """See Proxy."""
        for proxy in self.proxies:
            proxy.hole()

    def let_flow(self, flow: Flow) -> None:
        """Let bytes pass in this way; until `heal`."""
        for proxy in self.proxies:
            proxy.flow = flow

    def heal(self) -> None:
        """See Proxy."""
        for proxy in self.proxies:
            proxy.heal()
