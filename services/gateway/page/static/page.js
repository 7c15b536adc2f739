// Liveness: polls that stop while the page is hidden, ask only for what has changed, and keep the focus.
"use strict";

const tags = new Map(); // path → ETag of what is shown

document.documentElement.classList.add("live");

document.addEventListener("htmx:beforeRequest", (event) => {
  const polls = event.detail.pathInfo.requestPath.startsWith("/page/live/");
  const opened = event.detail.elt.querySelector("details[open]"); // somebody reads it
  if (polls && (document.hidden || opened)) event.preventDefault();
});

document.addEventListener("htmx:configRequest", (event) => {
  const tag = tags.get(event.detail.path);
  if (tag) event.detail.headers["If-None-Match"] = tag;
});

document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr, target, pathInfo } = event.detail;
  const tag = xhr.getResponseHeader("ETag");
  if (tag && pathInfo.requestPath.startsWith("/page/live/")) tags.set(pathInfo.requestPath, tag);
  const focused = document.activeElement;
  if (focused && target.contains(focused) && focused.href) {
    target.addEventListener(
      "htmx:afterSettle",
      () => [...target.querySelectorAll("a")].find((each) => each.href === focused.href)?.focus(),
      { once: true },
    );
  }
});

const note = (text) => {
  const place = document.getElementById("live-note");
  if (place && place.textContent !== text) place.textContent = text;
};

for (const failure of ["htmx:sendError", "htmx:responseError"]) {
  document.addEventListener(failure, () => note("The gateway does not answer. What you see is old; it is asked again."));
}
document.addEventListener("htmx:afterOnLoad", () => note(""));

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
