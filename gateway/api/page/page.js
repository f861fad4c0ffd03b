"use strict";
// Keeps an open page true: once a second the server sends what has changed, by id: an element's HTML, or of one that
// holds others its own empty HTML and the ids of all that it holds now. Only such HTML is put into the page. Ages are
// counted here, so that nothing is sent because it is older.
(() => {
  const SILENCE_MS = 4000, RELOAD_MS = 5000, CLOSED = 2;
  const root = document.documentElement, known = new Map();
  const byId = (id) => document.getElementById(id);
  let ahead = Date.parse(root.dataset.now) - Date.now(), heard = Date.now(), asked = 0, source = null;

  const made = (id, html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    known.set(id, html);
    return template.content.firstElementChild;
  };
  const replace = (id, html) => {
    const old = byId(id), fresh = made(id, html);
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    old.replaceWith(fresh);
  };
  const arrange = (group, ids, parts) => {
    let at = group.firstElementChild;
    for (const id of ids) {
      const element = byId(id) ?? made(id, [parts[id]].flat()[0]); // a group's own HTML is the first of its list
      if (element === at) at = at.nextElementSibling;
      else group.insertBefore(element, at);
    }
    while (at) {
      const gone = at;
      at = at.nextElementSibling;
      known.delete(gone.id);
      gone.remove();
    }
  };
  const update = (parts) => {
    const focused = document.activeElement?.id;
    for (const [id, part] of Object.entries(parts)) {
      if (Array.isArray(part)) arrange(byId(id), part.slice(1), parts);
      else if (byId(id) && known.get(id) !== part) replace(id, part);
    }
    if (focused && document.activeElement?.id !== focused) byId(focused)?.focus({ preventScroll: true });
  };

  const span = (seconds) => {
    const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
    return d ? `${d}d ${h % 24}h` : h ? `${h}h ${m % 60}m` : m ? `${m}m ${s % 60}s` : `${s}s`;
  };
  const write = (element, text) => element.textContent === text || (element.textContent = text);
  const grow = () => {
    for (const time of document.querySelectorAll("time[data-age]"))
      write(time, span((Date.now() + ahead - Date.parse(time.dateTime)) / 1000));
  };
  const say = (away, text) => {
    root.classList.toggle("away", away);
    write(byId("link"), text);
  };
  const silent = () => say(true, `no answer since ${new Date(heard + ahead).toISOString().slice(11, 19)} UTC, reconnecting`);

  const open = () => {
    source?.close();
    source = new EventSource("status/events");
    asked = Date.now();
    source.addEventListener("hello", (event) => JSON.parse(event.data).page === root.dataset.page || location.reload());
    source.onmessage = (event) => {
      const { now, parts } = JSON.parse(event.data);
      heard = Date.now();
      ahead = Date.parse(now) - heard;
      update(parts);
      grow();
      say(false, "live");
    };
    source.onerror = () => (source.readyState === CLOSED ? say(false, "not live, too many look on: loads itself anew") : silent());
  };
  // Closed for good: too many look at it already, or a proxy answers for a gateway that is away.
  const reload = () => fetch("livez").then((answer) => (answer.ok ? location.reload() : silent()), silent);
  open();
  setInterval(() => {
    if (Date.now() - heard > SILENCE_MS && source.readyState !== CLOSED) silent();
    else if (!root.classList.contains("away")) grow();
    if (Date.now() - asked < RELOAD_MS) return;
    if (source.readyState === CLOSED) (asked = Date.now()), reload();
    else if (Date.now() - heard > 2 * RELOAD_MS) open();
  }, 1000);
})();
