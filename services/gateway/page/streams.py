"""The views of one stream, an order's or a user's, and the search that finds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from eventcore.web.caller import user_id_of
from gateway.page.flow import moment
from gateway.page.forms import Again, Filled
from gateway.page.guard import sees_all
from gateway.page.services import Reply, segment
from gateway.page.story import causes, tell

if TYPE_CHECKING:
    from gateway.page.pages import Site

SHOWN = 20
"""Events of a stream that one page shows."""

YOUNG = timedelta(seconds=30)
"""Age of a stream's last event up to which its page is polled as often as the others."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stream that has a view: its service, and where its document and events are."""

    name: str
    title: str
    service: str
    document: str
    events: str
    types: tuple[str, ...]
    """Aggregate types whose streams have its id."""


KINDS = {
    "orders": Kind(
        "orders", "Order", "order", "/queries/orders/{id}", "/orders/{id}/events",
        ("order", "order_saga"),
    ),
    "users": Kind(
        "users", "User", "user", "/users/{id}", "/users/{id}/events", ("user", "credit")
    ),
}  # fmt: skip


class Streams:
    """The views of single streams."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._get = site.services.get

    def show(self, kind: Kind, id: str, filled: Filled | None = None) -> tuple[str, int]:
        """The whole page of a stream; with what was typed into one of its forms, if anything."""
        version = request.args.get("version", type=int)
        story = self.story(kind, id)
        if not story["events"].ok:
            return render_template(
                "shop/message.html", title=f"{kind.title} {id}", detail=story["events"].problem
            ), story["events"].status
        document = kind.document.replace("{id}", segment(id))
        past = self._get(kind.service, f"{document}?version={version}") if version else None
        more = self._of_user(id) if kind.name == "users" else {}
        shown = {**story, **more, "past": past, "version": version}
        page = render_template("shop/stream.html", filled=filled or Filled(), **shown)
        return page, 200

    def story(self, kind: Kind, id: str) -> dict[str, Any]:
        """All that is told of a stream: document, events, saga, and the causes of what is wrong."""
        path = segment(id)
        now = self._get(kind.service, kind.document.replace("{id}", path))
        last = now.version
        after = max(0, request.args.get("after", last - SHOWN, type=int))
        events = self._events(kind, path, after)
        read = events.body["events"] if events.ok else []
        documents = {e["version"]: e["document"] for e in read if e["document"]}
        listed = [each for each in read if each["version"] > after]
        trace = self._trace(kind, path) if events.ok else []
        told = tell(kind.types[0], listed, documents, trace)
        owner = now.body["userId"] if now.ok and kind.name == "orders" else ""
        return {
            "owner": self._get("user", f"/users/{segment(owner)}") if owner else None,
            "kind": kind,
            "id": id,
            "now": now,
            "events": events,
            "told": told,
            "arrived": bool(told) and kind.name in dict(told[-1].readable),
            "last": max([last, *(each["version"] for each in listed)]),
            "after": after,
            "causes": self._causes(kind, id, trace),
            "saga": [e for e in trace if e.get("aggregateType") == "order_saga"],
            "young": _is_young(listed, now, self._site.now()),
        }

    def _events(self, kind: Kind, path: str, after: int) -> Reply:
        """The events of a page with their documents, and the one before it, to compare with."""
        before = min(after, 1)
        asked = f"after={after - before}&limit={SHOWN + before}&include=documents"
        return self._get(kind.service, f"{kind.events.replace('{id}', path)}?{asked}")

    def _trace(self, kind: Kind, path: str) -> list[Mapping[str, Any]]:
        if not sees_all():
            return []
        reply = self._get(kind.service, f"/internal/trace?id={path}")
        return list(reply.body["entries"]) if reply.ok else []

    def _causes(self, kind: Kind, id: str, trace: Sequence[Mapping[str, Any]]) -> list[Any]:
        sample = self._site.sample()
        state = sample.states[kind.service] if sample else None
        sagas = [e for e in (state or {}).get("sagas") or () if e["stream"] == id]
        return [*causes(trace, self._site.lanes(), sagas)]

    def _of_user(self, id: str) -> dict[str, Any]:
        return {
            "credit": self._get("user", f"/users/{segment(id)}/credit"),
            "orders": self._get("order", f"/queries/orders?userId={segment(id)}&limit=12"),
        }

    # ── the search ────────────────────────────────────────────────────────────────────────

    def search(self) -> AnyResponse:
        """Sends any id to the view that shows it; one that no stream has is a correlation id."""
        wanted = request.args.get("q", "").strip()
        if not wanted:
            return redirect(url_for("page.start"))
        return redirect(self._place(wanted[:200]))

    def _place(self, wanted: str) -> str:
        if id := user_id_of(wanted):
            for kind in KINDS.values():
                if self._get(kind.service, f"{kind.events.replace('{id}', id)}?limit=1").ok:
                    return url_for("page.stream", kind=kind.name, id=id)
            for service in self._site.names if sees_all() else ():
                if (found := self._get(service, f"/internal/event/{id}")).ok:
                    return self._of_event(found.body)
        return url_for("page.correlation", wanted=wanted)

    def _of_event(self, event: Mapping[str, Any]) -> str:
        for kind in KINDS.values():
            if event["aggregateType"] == kind.types[0]:
                after = max(0, event["version"] - SHOWN // 2)
                return url_for(
                    "page.stream", kind=kind.name, id=event["stream"], after=after,
                    _anchor=f"v{event['version']}",
                )  # fmt: skip
        wanted = event["correlationId"] or event["stream"]
        return url_for("page.correlation", wanted=wanted, _anchor=event["eventId"])


def add_streams(pages: Blueprint, site: "Site") -> dict[str, Again]:
    """Adds the views of streams and the search; returns how a refused form is shown again."""
    streams = Streams(site)

    @pages.get("/page/<any(orders, users):kind>/<id>")
    def stream(kind: str, id: str) -> tuple[str, int]:
        return streams.show(KINDS[kind], id)

    @pages.get("/page/live/<any(orders, users):kind>/<id>")
    def stream_live(kind: str, id: str) -> AnyResponse:
        asked = (request.args.get(name, "") for name in ("after", "seen"))
        return site.fragment("story", lambda: streams.story(KINDS[kind], id), kind, id, *asked)

    pages.add_url_rule("/page/search", "search", streams.search)

    def again(kind: str) -> Again:
        return lambda filled, id: streams.show(KINDS[kind], id, filled)[0]

    return {"change": again("users"), "limit": again("users"), "cancel": again("orders")}


def _is_young(events: Sequence[Mapping[str, Any]], document: Reply, now: datetime) -> bool:
    """Whether a stream may still change at any moment, or its document is not there yet."""
    if document.source != "view" or (document.ok and document.body.get("status") == "pending"):
        return True
    return any(now - moment(each["recordedAt"]) < YOUNG for each in events)
