"use strict";
// Live numbers of the ring, and the dialog in which an operator confirms. Text goes in as text only.

const failure = document.getElementById("failure");

function tell(message) {
  if (failure.textContent !== (message || "")) failure.textContent = message || "";
  failure.hidden = !message;
}

function show(attribute, name, text) {
  for (const element of document.querySelectorAll(`[data-${attribute}="${CSS.escape(name)}"]`)) {
    if (element.textContent !== text) element.textContent = text;
  }
}

const LOOKS = ["well", "waits", "ill", "stale"];

function look(name, now) {
  for (const element of document.querySelectorAll(`[data-look="${CSS.escape(name)}"]`)) {
    for (const each of LOOKS) element.classList.toggle(each, each === now);
  }
}

function mark(stale) {
  const tiles = document.getElementById("tiles");
  if (tiles) tiles.classList.toggle("stale", stale);
}

async function refresh(url) {
  try {
    const answer = await fetch(url, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const now = await answer.json();
    for (const [topic, flow] of Object.entries(now.flows)) {
      show("rate", topic, String(flow.per_minute));
      show("total", topic, String(flow.total));
      show("last", topic, flow.last);
      for (const path of document.querySelectorAll(`[data-flow="${CSS.escape(topic)}"]`)) path.classList.toggle("flows", flow.per_minute > 0 && !now.stale);
    }
    for (const [name, text] of Object.entries(now.tiles)) show("tile", name, text);
    for (const [name, part] of Object.entries(now.parts)) {
      show("told", name, part.told);
      look(name, part.look);
    }
    mark(now.stale);
    tell(now.failure);
  } catch {
    tell("The console does not answer. These numbers may be old.");
    mark(true);
    for (const element of document.querySelectorAll("[data-look]")) look(element.dataset.look, "stale");
    for (const path of document.querySelectorAll("[data-flow]")) path.classList.remove("flows");
  }
}

const live = document.querySelector("[data-live]");
if (live) setInterval(() => { if (!document.hidden) refresh(live.dataset.live); }, 2000);

function made(name, text, parts = []) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  element.append(...parts);
  return element;
}

function reasons(heading, columns, rows) {
  const link = (id) => Object.assign(made("a", id), { href: `/episodes/${encodeURI(id)}` });
  const cell = (text, index) => Object.assign(made("td", text), { className: "n" });
  const head = made("thead", undefined, [made("tr", undefined, columns.map((c, i) => Object.assign(made("th", c), { scope: "col", className: i ? "n" : "" })))]);
  const body = rows.map(([id, ...texts]) => made("tr", undefined, [
    Object.assign(made("th", undefined, [id.startsWith("all ") ? id : link(id)]), { scope: "row" }), ...texts.map(cell)]));
  return [made("h3", heading), Object.assign(made("div", undefined, [made("table", undefined, [head, made("tbody", undefined, body)])]), {
    className: "scroll", role: "region", ariaLabel: heading, tabIndex: 0 })];
}

const explain = document.getElementById("explain");
if (explain) {
  const into = document.getElementById("explained");
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);
  explain.addEventListener("click", async () => {
    explain.disabled = true;
    into.replaceChildren(made("p", "Reading the lake…"));
    try {
      const answer = await fetch(`/api/explain?episode=${encodeURIComponent(explain.dataset.episode)}`, { cache: "no-store" });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error);
      into.replaceChildren(
        made("p", `Reward model v${told.version}: score ${told.mean.toFixed(3)} ± ${told.std.toFixed(3)} (disagreement of the ensemble), reward ${told.lower.toFixed(3)}.`),
        ...reasons("Nearest labelled answers", ["episode", "similarity", "verdict"],
          told.neighbours.map((n) => [n.episode_id, n.similarity.toFixed(2), n.verdict.toFixed(2)])),
        ...reasons("Labels that contributed most", ["episode", "logits"],
          [...told.moved.map((m) => [m.episode_id, signed(m.logits)]), ["all other labels", signed(told.others)], ["all answers (baseline)", signed(told.standing)]]),
      );
    } catch (error) {
      into.replaceChildren(made("p", error.message || "The console does not answer."));
    }
    explain.disabled = false;
  });
}

const dialog = document.getElementById("act");
if (dialog) {
  const part = (name) => document.getElementById(`act-${name}`);
  let asked = null;

  for (const button of document.querySelectorAll("button[data-act]")) {
    button.addEventListener("click", () => {
      asked = button.dataset;
      part("title").textContent = asked.title;
      part("words").textContent = asked.words;
      part("told").textContent = "";
      part("reason-row").hidden = !asked.move;
      part("reason").required = Boolean(asked.move);
      part("reason").value = "";
      part("go").hidden = part("go").disabled = false;
      part("cancel").textContent = "Cancel";
      dialog.showModal();
    });
  }

  part("cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { part("key").value = ""; });

  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    part("go").disabled = true;
    const body = asked.move
      ? { adapter: asked.adapter, move: asked.move, reason: part("reason").value }
      : { offset: Number(asked.offset) };
    try {
      const answer = await fetch(asked.act, {
        method: "POST",
        headers: { "content-type": "application/json", "x-tidemill-operator-key": part("key").value },
        body: JSON.stringify(body),
      });
      const told = await answer.json();
      part("told").textContent = told.done || told.error;
      part("go").hidden = answer.ok;
      if (answer.ok) {
        part("cancel").textContent = "Close";
        dialog.addEventListener("close", () => location.reload(), { once: true });
      }
    } catch {
      part("told").textContent = "The console does not answer. Reload the page before you repeat this.";
    }
    part("go").disabled = false;
  });
}
