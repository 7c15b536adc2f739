"""Access to the page: security headers, and the caller's credential in a cookie."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from eventcore.errors import Error
from eventcore.web.caller import SAFE, Caller
from gateway.identity import lacking_scope
from gateway.tokens import NotVerified

COOKIE = "page-credential"
"""Cookie with the token or API key; no script and no other site can use it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_BEARER = re.compile(r"^\s*Bearer\s+", re.IGNORECASE)

_LOCAL = re.compile(r"/page(?:[/?][\x21-\x5b\x5d-\x7e]*)?", re.ASCII)
"""A path of the page, which leads to no other site."""

Verify = Callable[[str], Caller]


def guard(pages: Blueprint, verify: Verify | None) -> None:
    """Asks for a credential where callers are verified, and refuses forms of other sites."""

    @pages.before_request
    def admit() -> AnyResponse | tuple[str, int] | None:
        if request.method not in SAFE and not _is_own_form():
            return _message(403, "Another site sent this form", "Nothing was done.")
        is_open = (request.endpoint or "").rpartition(".")[2] in ("static", "sign_in", "sign_out")
        return None if verify is None or is_open else identify(verify)

    @pages.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.setdefault("Cache-Control", "no-cache, private")
        return response

    if verify:
        _add_signing(pages, verify)


def sees_all() -> bool:
    """Whether the caller may see the streams of all users."""
    caller: Caller | None = g.get("caller")
    return caller is None or not caller.is_limited


def identify(verify: Verify) -> AnyResponse | tuple[str, int] | None:
    """Sets the caller; answers where there is none, or one that may not make the request."""
    try:
        g.caller = caller = verify(request.cookies.get(COOKIE, ""))
    except NotVerified:
        return redirect(url_for("page.sign_in", to=_asked_for()), 303)
    except Error as error:
        return _message(503, "Nobody can be verified now", str(error))
    if scope := lacking_scope(caller, request.method):
        return _message(403, "Not allowed", f"Your credential does not have the scope {scope}.")
    return None


def _asked_for() -> str | None:
    """The path to return to after the sign-in; None: the start."""
    is_shown = request.method == "GET" and not request.path.startswith("/page/live/")
    path = request.full_path.rstrip("?")
    return path if is_shown and path != "/page" else None


def _is_own_form() -> bool:
    """Whether this page's own form was sent: browsers say so in either of two headers."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        return site == "same-origin"
    return origin is None or urlsplit(origin).netloc == request.host


def _message(status: int, title: str, detail: str) -> tuple[str, int]:
    return render_template("shop/message.html", title=title, detail=detail), status


def _add_signing(pages: Blueprint, verify: Verify) -> None:
    @pages.route("/page/sign-in", methods=["GET", "POST"])
    def sign_in() -> AnyResponse | tuple[str, int]:
        if request.method == "GET":
            return render_template("shop/sign_in.html"), 200
        credential = _BEARER.sub("", request.form.get("credential", "")).strip()
        try:
            verify(credential)
        except (Error, NotVerified) as error:
            return render_template("shop/sign_in.html", error=str(error)), 401
        to = request.args.get("to", "")
        answer = redirect(to if _LOCAL.fullmatch(to) else "/page", 303)
        is_secure = "https" in (request.scheme, request.headers.get("X-Forwarded-Proto"))
        answer.set_cookie(COOKIE, credential, httponly=True, samesite="Strict", secure=is_secure)
        return answer

    @pages.post("/page/sign-out")
    def sign_out() -> AnyResponse:
        answer = redirect("/page/sign-in", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="Strict")
        return answer
