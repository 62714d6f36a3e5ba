"use strict";
// One conversation with the policy: answers are streamed, and each can be thumbed, commented on and corrected. Text goes in as text, never as HTML.

const at = (id) => document.getElementById(id);
const policy = document.body.dataset.policy;
let messages = [], conversation = newId("cv"), asking = null;

function newId(prefix) {
  return `${prefix}-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function person() {  // one voice in a label, however often the page is opened
  let id = localStorage.getItem("tidemill-person");
  if (!id) localStorage.setItem("tidemill-person", id = newId("chat"));
  return id;
}

function headers() {
  const key = at("key").value.trim();
  sessionStorage.setItem("tidemill-key", key);
  return { "content-type": "application/json", "x-tidemill-user": person(), ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function tell(words, bad = false) {
  at("told").textContent = words;
  at("told").classList.toggle("bad", bad);
}

async function problem(response) {
  if (response.status === 401) { at("setup").open = true; at("key").focus(); }
  const said = await response.json().catch(() => null);
  return said?.error?.message ?? said?.message ?? `The server answered ${response.status}.`;
}

function sayPerson(text) {
  const item = document.createElement("li");
  item.className = "person";
  for (const [name, words] of [["role", "You"], ["text", text]]) {
    const line = document.createElement("p");
    line.className = name;
    line.textContent = words;
    item.append(line);
  }
  at("talk").append(item);
  item.scrollIntoView({ block: "end" });
}

function beginAnswer() {
  const item = at("answer").content.firstElementChild.cloneNode(true);
  item.querySelector(".name").textContent = policy;
  item.querySelector(".write textarea").id = item.querySelector(".write label").htmlFor = newId("write");
  item.setAttribute("aria-busy", "true");  // read aloud once it is whole, not word by word
  at("talk").append(item);
  return item;
}

async function* deltas(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message ?? "The answer was interrupted.");
      yield event.choices?.[0]?.delta?.content ?? "";
    }
  }
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  sayPerson(text);
  const item = beginAnswer(), shown = item.querySelector(".text");
  asking = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  tell("");
  const mine = messages;
  let answer = "", failure = null;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", signal: asking.signal, headers: { ...headers(), "x-tidemill-conversation": conversation },
      body: JSON.stringify({ model: at("model").value.trim() || policy, messages, stream: true }),
    });
    if (!response.ok) throw new Error(await problem(response));
    item.dataset.episode = response.headers.get("x-tidemill-episode") ?? "";
    item.querySelector(".adapter").textContent = response.headers.get("x-tidemill-adapter") ?? "";
    for await (const delta of deltas(response.body)) {
      const main = document.querySelector("main"), near = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
      shown.textContent = answer += delta;
      if (near) item.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    failure = error.name === "AbortError" ? "Stopped." : error.message;
  }
  asking = null;
  at("send").disabled = false;
  at("stop").hidden = true;
  if (mine !== messages) return;  // another conversation was begun meanwhile
  if (!answer && failure) {  // nothing was said: the question can be sent again
    messages.pop();
    item.remove();
    at("talk").lastElementChild?.remove();
    at("said").value = at("said").value || text;
  } else {
    messages.push({ role: "assistant", content: answer });
    item.querySelector(".judge").hidden = !item.dataset.episode;
    item.removeAttribute("aria-busy");
    item.scrollIntoView({ block: "end" });
  }
  if (failure) tell(failure, failure !== "Stopped.");
}

async function give(item, what) {
  const feedback = { feedback_id: newId("fb"), episode_id: item.dataset.episode, ...what };
  try {
    const response = await fetch("/v1/feedback", { method: "POST", headers: headers(), body: JSON.stringify(feedback) });
    if (!response.ok) throw new Error(await problem(response));
  } catch (error) {
    tell(error.message, true);
    return null;
  }
  tell(what.retracts ? "Your thumb is withdrawn." : "Thank you. Your feedback is recorded.");
  return feedback.feedback_id;
}

async function thumb(item, button) {
  const pressed = button.getAttribute("aria-pressed") === "true";
  const given = await give(item, pressed ? { retracts: button.dataset.given } : { thumb: button.dataset.thumb });
  if (!given) return;
  for (const each of item.querySelectorAll("[data-thumb]")) each.setAttribute("aria-pressed", String(each === button && !pressed));
  button.dataset.given = given;
}

function write(item, button) {
  const form = item.querySelector(".write"), field = form.querySelector("textarea"), kind = button.dataset.write;
  const open = !form.hidden && form.dataset.kind === kind;
  closeWriting(item);
  if (open) return;
  form.dataset.kind = kind;
  form.querySelector("label").textContent = kind === "comment" ? "What is good or bad about this answer?" : "The whole answer as it should have been";
  field.value = kind === "comment" ? "" : item.querySelector(".text").textContent;
  form.hidden = false;
  button.setAttribute("aria-expanded", "true");
  field.focus();
  form.scrollIntoView({ block: "nearest" });
}

function closeWriting(item, focus = false) {
  item.querySelector(".write").hidden = true;
  for (const each of item.querySelectorAll("[data-write]")) {
    if (focus && each.getAttribute("aria-expanded") === "true") each.focus();
    each.setAttribute("aria-expanded", "false");
  }
}

at("talk").addEventListener("click", (event) => {
  const button = event.target.closest("button"), item = event.target.closest(".answer");
  if (!button || !item) return;
  if (button.dataset.thumb) thumb(item, button);
  else if (button.dataset.write) write(item, button);
  else if ("cancel" in button.dataset) closeWriting(item, true);
});
at("talk").addEventListener("submit", async (event) => {
  event.preventDefault();
  const item = event.target.closest(".answer");
  const text = event.target.querySelector("textarea").value.trim();
  if (text && await give(item, { kind: event.target.dataset.kind, text })) closeWriting(item, true);
});
at("talk").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.closest(".write")) closeWriting(event.target.closest(".answer"), true);
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("said").value.trim();
  if (!text || asking) return;
  at("said").value = "";
  ask(text);
});
at("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
});
at("stop").addEventListener("click", () => { asking?.abort(); at("said").focus(); });
at("anew").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  conversation = newId("cv");
  at("talk").replaceChildren();
  tell("New conversation started.");
  at("said").focus();
});
at("key").value = sessionStorage.getItem("tidemill-key") ?? "";
