"""The page for people: what the services say, for browsers. Delete this folder to be without it."""

from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Flask, Response, g, render_template, request

from eventcore.clock import SYSTEM_CLOCK, Clock
from gateway.forward import Upstream
from gateway.page.filters import add_filters
from gateway.page.flow import Lane, journeys, lanes
from gateway.page.forms import ROWS, Filled, add_forms, repeated
from gateway.page.guard import Verify, guard, sees_all
from gateway.page.services import Services, segment
from gateway.page.story import merge
from gateway.page.streams import add_streams
from gateway.page.watch import Rendered, Sample, Watch

PAGE = "page"
"""Name of the blueprint, which asks for the credential in its cookie."""


class Site:
    """The page's views, and what they share: the states of the services, rendered fragments."""

    def __init__(self, services: Services, clock: Clock = SYSTEM_CLOCK) -> None:
        self.services = services
        self.now = clock.now
        self._watch = Watch(self._states, clock.monotonic)
        self._rendered = Rendered(clock.monotonic)

    def _states(self) -> dict[str, Any]:
        replies = {name: self.services.get(name, "/internal/status") for name in self.names}
        return {name: reply.body if reply.ok else None for name, reply in replies.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The services, in their order."""
        return tuple(self.services.upstreams)

    def sample(self) -> Sample | None:
        """The states of all services; None where the caller may not see them."""
        return self._watch.now() if sees_all() else None

    def lanes(self) -> list[Lane]:
        """The lanes of the picture; none where the caller may not see them."""
        sample = self.sample()
        return lanes(sample, self.now()) if sample else []

    def fragment(self, name: str, make: Callable[[], Mapping[str, Any]], *key: str) -> Response:
        """A part of a page that is polled: rendered once for all who look, 304 if it is known."""
        caller = g.get("caller")
        whose = caller.actor if caller else ""
        template = f"shop/_{name}.html"
        render = lambda: render_template(template, **make())  # noqa: E731
        text, tag = self._rendered.get((name, whose, *key), render)
        known = tag in request.if_none_match
        response = Response("" if known else text, 304 if known else 200, mimetype="text/html")
        response.set_etag(tag)
        return response

    # ── what each view shows ──────────────────────────────────────────────────────────────

    def lists(self) -> dict[str, Any]:
        orders = self.services.get("order", "/queries/orders?limit=12")
        return {"orders": orders, "users": self.users(), **self.picture()}

    def users(self) -> list[Mapping[str, Any]]:
        """The newest users; of a caller who sees one user alone, that one."""
        if sees_all():
            reply = self.services.get("user", "/internal/newest")
            return list(reply.body["documents"]) if reply.ok else []
        reply = self.services.get("user", f"/users/{g.caller.user}")
        return [reply.body] if reply.ok else []

    def picture(self) -> dict[str, Any]:
        sample = self.sample()
        now = self.now()
        shown = {"lanes": lanes(sample, now), "journeys": journeys(sample, now)} if sample else {}
        return {**shown, "sample": sample}

    def projections(self) -> dict[str, Any]:
        return {"lanes": self.lanes(), "sample": self.sample()}

    def correlation(self, wanted: str) -> dict[str, Any]:
        path = f"/internal/trace?id={segment(wanted)}"
        replies = {name: self.services.get(name, path) for name in self.names if sees_all()}
        found = [
            [{**entry, "service": name} for entry in reply.body["entries"]]
            for name, reply in replies.items()
            if reply.ok
        ]
        return {
            "wanted": wanted,
            "entries": merge(found),
            "notes": [r.body["searched"] for r in replies.values() if r.ok and r.body["searched"]],
            "away": [name for name, reply in replies.items() if not reply.ok],
        }


def add_page(
    app: Flask,
    upstreams: Mapping[str, Upstream],
    tokens: Mapping[str, Callable[[], str]] | None = None,
    verify: Verify | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Adds the page at /page, to which the app sends browsers.

    With `verify` callers show a credential, and see what it allows.
    """
    pages = Blueprint(
        PAGE, __name__, static_folder="static", static_url_path="/page/static",
        template_folder="templates",
    )  # fmt: skip
    guard(pages, verify)
    site = Site(Services(upstreams, tokens or {}), clock)
    add_filters(pages)
    pages.context_processor(
        lambda: {"signs_in": verify is not None, "sees_all": sees_all(), "repeated": repeated()}
    )

    def start(filled: Filled = Filled(), _id: str = "") -> str:  # noqa: B008 - it is frozen
        return render_template("shop/start.html", filled=filled, **site.lists())

    def batch(filled: Filled = Filled(), _id: str = "") -> str:  # noqa: B008 - it is frozen
        return render_template("shop/batch.html", filled=filled, rows=ROWS, users=site.users())

    pages.add_url_rule("/page", "start", start)
    pages.add_url_rule("/page/orders/batch", "batch", batch)
    _add_views(pages, site)
    again = add_streams(pages, site)
    add_forms(pages, site.services, {"user": start, "order": start, "batch": batch, **again})
    app.register_blueprint(pages)


def _add_views(pages: Blueprint, site: Site) -> None:
    @pages.get("/page/live/start")
    def start_live() -> Response:
        return site.fragment("lists", site.lists)

    @pages.get("/page/flow")
    def flow() -> str:
        return render_template("shop/flow.html", **site.picture())

    @pages.get("/page/live/flow")
    def flow_live() -> Response:
        return site.fragment("flow", site.picture)

    @pages.get("/page/projections")
    def projections() -> str:
        return render_template("shop/projections.html", **site.projections())

    @pages.get("/page/live/projections")
    def projections_live() -> Response:
        return site.fragment("projections", site.projections)

    @pages.get("/page/")
    @pages.get("/page/<path:path>")
    def missing(path: str = "") -> tuple[str, int]:
        detail = f"The page has nothing at /page/{path[:200]}."
        return render_template("shop/message.html", title="Not found", detail=detail), 404

    @pages.get("/page/correlations/<path:wanted>")
    def correlation(wanted: str) -> str:
        return render_template("shop/correlation.html", **site.correlation(wanted))
