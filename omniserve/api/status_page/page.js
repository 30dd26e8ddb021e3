// Keeps the page up to date: what the server remembers first, then an event a second.

import { duration, number } from "./draw.js";
import { History } from "./history.js";
import * as sections from "./sections.js";

const AGAIN_MS = 1000;
const RETRY_MS = 3000;
const MAX_SHOWN = 200;
const history = new History();
let newest = null;

const find = (id) => document.getElementById(id);

async function connect() {
  const read = await load();
  if (!read) {
    lose();
    return;
  }
  history.load(read.history);
  take(read.status);
  follow();
}

async function load() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function follow() {
  const source = new EventSource("status/events");
  source.onmessage = (event) => take(JSON.parse(event.data));
  // The server ends it now and then; whether it is lost, the next answer tells.
  source.onerror = () => {
    source.close();
    setTimeout(connect, AGAIN_MS);
  };
}

// A daemon that comes back may be another one, so all is read anew.
function lose() {
  document.body.className = "lost";
  find("link").textContent = newest ? "connection lost, trying again" : "no answer, trying again";
  setTimeout(connect, RETRY_MS);
}

function take(status) {
  newest = status;
  history.add(status);
  document.body.className = "live";
  if (!document.hidden) show();
}

function show() {
  const status = newest;
  const running = status.tiers.reduce((sum, tier) => sum + tier.num_running, 0);
  document.title = `${status.state === "ready" ? number(running) : status.state} · OmniServe`;
  find("state").textContent = status.state;
  find("state").className = `pill ${mood(status.state)}`;
  find("facts").textContent = facts(status).join(" · ");
  if (find("link").textContent !== "live") find("link").textContent = "live";
  find("problem").hidden = !status.reload_error;
  find("problem").textContent = status.reload_error
    && `The configuration file was not taken over:\n${status.reload_error}`;
  find("cards").replaceChildren(...sections.cards(status, history));
  fill("tiers", sections.tiers(status, history));
  fill("models", sections.models(status, history));
  const isCut = status.requests.length >= MAX_SHOWN;
  fill("requests", sections.requests(status), isCut ? `the oldest ${MAX_SHOWN}` : `${status.requests.length} here`);
  fill("refusals", sections.refusals(status), `the last ${status.refusals.length}`);
  fill("tenants", sections.tenants(status));
}

function facts(status) {
  const restarts = status.num_engine_restarts;
  return [status.version, status.device, `up ${duration(status.uptime_s)}`,
    restarts ? `engine restarted ${restarts === 1 ? "once" : `${restarts} times`}` : ""].filter(Boolean);
}

function mood(state) {
  if (state === "ready") return "good";
  return state === "failed" ? "bad" : "";
}

// What somebody has scrolled to stays in sight.
function fill(id, content, remark = "") {
  const section = find(id);
  const holder = section.querySelector(".content");
  const before = holder.querySelector(".scroll");
  const place = before && { left: before.scrollLeft, top: before.scrollTop };
  section.hidden = !content.length;
  holder.replaceChildren(...content);
  if (place) holder.querySelector(".scroll")?.scrollTo({ ...place, behavior: "instant" });
  const heading = section.querySelector("h2");
  heading.querySelector("small")?.remove();
  if (remark) {
    const made = document.createElement("small");
    made.textContent = remark;
    heading.append(made);
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && newest) show();
});
connect();
