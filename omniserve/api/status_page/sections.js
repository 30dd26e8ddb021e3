// The parts of the page, each made anew from a status.

import { bytes, duration, element, lanes, meter, number, percent, rate, sparkline } from "./draw.js";

const LAST = "over the last 5 minutes";

export function cards(status, history) {
  const running = sum(status.tiers, (tier) => tier.num_running);
  const waiting = sum(status.tiers, (tier) => tier.num_waiting);
  const tokens = sum(status.tiers, (tier) => tier.output_tokens_per_s);
  const all = history.allTokens;
  const host = status.host;
  return [
    card("Output", [rate(tokens), " ", element("small", "", "tokens/s")],
      sparkline(all, 0, `tokens/s ${LAST}, at most ${rate(Math.max(0, ...all))}`)),
    card("Requests", [number(running), " ", element("small", "", "running"), " ", number(waiting),
      " ", element("small", "", "waiting")],
      note(`${number(sum(status.tiers, (tier) => tier.num_refused))} refused since the start`)),
    promises(status.tiers),
    card("Cores busy", [percent(host.busy_share), " ", element("small", "", `of ${host.num_cores}`)],
      sparkline(history.busy, 1, `cores busy ${LAST}`)),
    card("Memory", [bytes(host.memory_used_bytes), " ",
      element("small", "", `of ${bytes(host.memory_total_bytes)}`)],
      meter(share(host.memory_used_bytes, host.memory_total_bytes), "memory in use"), hostCores(host)),
  ];
}

function promises(tiers) {
  const kept = tiers.flatMap((tier) => ["ttft", "tpot"]
    .filter((name) => tier[`${name}_attainment`] !== null)
    .map((name) => ({ tier, name, share: tier[`${name}_attainment`], aim: tier.percentile / 100 })));
  if (!kept.length) return card("In time", ["–"], note("no request with objectives ended lately"));
  const worst = kept.reduce((low, each) => each.share - each.aim < low.share - low.aim ? each : low);
  const value = element("span", worst.share >= worst.aim ? "good" : "bad", percent(worst.share));
  return card("In time", [value], note(`${worst.name.toUpperCase()} of ${worst.tier.tier}, the `
    + `farthest from its ${percent(worst.aim)}; of the last 5 minutes`));
}

function hostCores(host) {
  if (!host.num_host_cores) return note("no cores for host attention");
  const cores = host.num_host_cores === 1 ? "1 core" : `${host.num_host_cores} cores`;
  return note(`${cores} for host attention, ${host.has_host_cores ? "its own now" : "lent to the device now"}`);
}

export function tiers(status, history) {
  const several = status.models.length > 1;
  const rows = status.tiers.map((tier) => {
    const points = history.tokensOf(tier.model, tier.tier);
    return [
      cell("text", element("span", `dot ${known(tier.service_class)}`), tier.tier),
      ...(several ? [cell("text", tier.model)] : []),
      cell("text wide", tier.service_class.replace("_", " ")),
      cell("", number(tier.num_running)),
      cell("", number(tier.num_waiting)),
      attained(tier.ttft_ms, tier.ttft_attainment, tier.percentile, "TTFT in time"),
      attained(tier.tpot_ms, tier.tpot_attainment, tier.percentile, "TPOT in time"),
      cell("", rate(tier.output_tokens_per_s)),
      cell(`wide ${known(tier.service_class)}`,
        sparkline(points, 0, `tokens/s ${LAST}, at most ${rate(Math.max(0, ...points))}`)),
      cell("wide", number(tier.output_tokens)),
      cell("", number(tier.num_refused)),
    ];
  });
  return [table([["tier", "text"], ...(several ? [["model", "text"]] : []), ["class", "text wide"],
    ["running", ""], ["waiting", ""], ["TTFT in time", ""], ["TPOT in time", ""], ["tokens/s", ""],
    ["last 5 minutes", "wide"], ["tokens", "wide"], ["refused", ""]], rows)];
}

function attained(objective_ms, attainment, percentile, label) {
  if (objective_ms === null) return cell("faint", "–");
  const limit = element("span", "faint limit", `≤ ${duration_ms(objective_ms)} `);
  if (attainment === null) return cell("", limit, element("span", "faint attained", "none yet"));
  const aim = percentile / 100;
  const verdict = attainment >= aim ? "good" : "bad";
  const held = element("span", `attained ${verdict}`, percent(attainment), meter(attainment, label, aim));
  return cell("", limit, held);
}

const duration_ms = (ms) => (ms < 1000 ? `${number(ms)} ms` : `${rate(ms / 1000)} s`);

export function models(status, history) {
  return status.models.map((model) => {
    const title = element("h3", "", model.name, " ", element("span", `pill ${stateKind(model)}`, stateOf(model)));
    if (["loading", "waking", "asleep", "failed"].includes(model.state)) {
      return element("div", "card", title, ...progressOf(model));
    }
    const made = element("div", "card", title, ...pool("Device KV", model.kv_used_bytes, model.kv_total_bytes));
    const numbers = [["steps", number(model.num_steps)], ["last step", `${rate(model.step_ms)} ms`],
      ["preemptions", number(model.num_preemptions)],
      ["prompt tokens", number(model.prompt_tokens)],
      ["from the cache", model.prompt_tokens ? percent(model.cached_tokens / model.prompt_tokens) : "–"],
      ["output tokens", number(model.output_tokens)]];
    if (model.kv_share !== null) {
      made.append(...pool("Of the KV budget", model.kv_share.granted_bytes, model.kv_total_bytes));
      numbers.push(...shareOf("KV", model.kv_share));
    }
    numbers.push(...sharedWithOthers(model));
    const piggyback = model.piggyback;
    if (piggyback === null) {
      made.append(figures(numbers), note("Best-effort decodes stay on the device."));
      return made;
    }
    numbers.push(["offloaded now", number(piggyback.num_offloaded)],
      ["piggybacked tokens", number(piggyback.num_tokens)],
      ["moved out / back", `${number(piggyback.num_swaps_out)} / ${number(piggyback.num_swaps_in)}`]);
    made.append(...pool("Host KV", piggyback.kv_used_bytes, piggyback.kv_total_bytes));
    if (piggyback.kv_share !== null) {
      made.append(...pool("Of the host's KV budget", piggyback.kv_share.granted_bytes, piggyback.kv_total_bytes));
      numbers.push(...shareOf("host KV", piggyback.kv_share));
    }
    made.append(figures(numbers), ...lanesOf(piggyback));
    return made;
  });
}

const shareOf = (name, kv) => [[`${name} with known prefixes`, bytes(kv.cached_bytes)],
  [`${name} floor`, bytes(kv.floor_bytes)],
  [`${name} got / gave up`, `${bytes(kv.in_bytes)} / ${bytes(kv.out_bytes)}`],
  [`${name} moves a second`, rate(kv.moves_per_s)]];

// Weights that other models hold too, and layers that ran once for rows of several models.
function sharedWithOthers(model) {
  const { weights, joint_layers: joint } = model;
  const found = [];
  if (weights !== null && weights.shared_bytes) {
    found.push(["weights own / shared", `${bytes(weights.own_bytes)} / ${bytes(weights.shared_bytes)}`],
      ["saved by sharing", bytes(weights.saved_bytes)]);
  }
  if (joint !== null && (joint.num_layers || weights?.shared_bytes)) {
    found.push(["layers with others", `${number(joint.num_layers)} (${percent(joint.share)})`],
      ["rows with others", number(joint.num_rows)]);
  }
  return found;
}

const stateKind = (model) => (model.state === "serving" ? "fast" : model.state === "failed" ? "bad" : "quiet");
const stateOf = (model) => (model.pinned ? `${model.state}, pinned` : model.state);

function progressOf(model) {
  if (model.state === "failed") return [note(model.error)];
  if (model.state === "asleep") {
    const notes = [note(`The next request wakes it; for ${duration(model.state_age_s)}`)];
    return model.error ? [...notes, note(`It could not be woken: ${model.error}`)] : notes;
  }
  if (model.progress === null) return [note("The engine is starting.")];
  const { phase, done_bytes, total_bytes } = model.progress;
  return [...pool(phase.replace("_", " "), done_bytes, total_bytes), note(`for ${duration(model.state_age_s)}`)];
}

function lanesOf(piggyback) {
  const onHost = sum(piggyback.rows_on_host, Number), ready = sum(piggyback.rows_ready, Number);
  const last = piggyback.rows_on_host.length - 1;
  return [
    element("div", "pair", element("span", "label", "Lanes by layer"), element("span", "note",
      element("span", "key", `${onHost} on the host`), element("span", "key ready", `${ready} ready to join`))),
    lanes(piggyback.rows_on_host, piggyback.rows_ready),
    element("div", "pair note", element("span", "", "layer 0"), element("span", "", `host attention: `
      + `${piggyback.host_state}, ${piggyback.active ? "taking on work" : "taking on none now"}`),
      element("span", "", `layer ${Math.max(0, last)}`)),
  ];
}

function pool(name, used, total) {
  const text = total ? `${bytes(used)} of ${bytes(total)}` : "unknown";
  const line = element("div", "pair", element("span", "label", name), element("span", "note", text));
  const bar = element("div", "kv", line, meter(share(used, total), name));
  return [bar];
}

export function requests(status) {
  if (!status.requests.length) return [];
  const tenants = status.requests.some((each) => each.tenant);
  const several = status.models.length > 1;
  const rows = status.requests.map((each) => [
    cell("text id", each.request_id || "–"),
    cell("text", each.tier || "–"),
    ...(several ? [cell("text wide", each.model)] : []),
    ...(tenants ? [cell("text wide", each.tenant)] : []),
    cell("text", element("span", `pill ${each.phase === "waiting" ? "quiet" : "fast"}`, each.phase)),
    cell("", duration(each.age_s)),
    cell("wide", number(each.prompt_tokens)),
    cell("", number(each.output_tokens)),
    cell("wide", number(each.piggybacked_tokens)),
  ]);
  return [table([["request", "text"], ["tier", "text"], ...(several ? [["model", "text wide"]] : []),
    ...(tenants ? [["tenant", "text wide"]] : []), ["phase", "text"], ["age", ""], ["prompt", "wide"],
    ["output", ""], ["piggybacked", "wide"]], rows)];
}

export function refusals(status) {
  if (!status.refusals.length) return [];
  const tenants = status.refusals.some((each) => each.tenant);
  const rows = status.refusals.map((each) => [
    cell("", `${duration(each.age_s)} ago`),
    cell("text id wide", each.request_id || "–"),
    cell("text", each.tier || "–"),
    ...(tenants ? [cell("text wide", each.tenant)] : []),
    cell("text reason", each.reason),
    cell("", each.retry_after_s === null ? "–" : `after ${duration(each.retry_after_s)}`),
  ]);
  return [table([["when", ""], ["request", "text wide"], ["tier", "text"],
    ...(tenants ? [["tenant", "text wide"]] : []), ["why", "text"], ["try again", ""]], rows)];
}

export function tenants(status) {
  if (!status.tenants.length) return [];
  const rows = status.tenants.map((each) => [
    cell("text", each.tenant),
    cell("", number(each.num_concurrent)),
    cell("", number(each.num_queued)),
    quota(each.input_tokens_share, "input tokens of the quota"),
    quota(each.output_tokens_share, "output tokens of the quota"),
    cell("", number(each.num_refused)),
  ]);
  return [table([["tenant", "text"], ["requests", ""], ["without a token yet", ""],
    ["input quota used", ""], ["output quota used", ""], ["refused", ""]], rows)];
}

function quota(used, label) {
  if (used === null) return cell("faint", "no limit");
  return cell("", element("span", `attained ${used >= 1 ? "bad" : ""}`, percent(used), meter(used, label)));
}

function table(headings, rows) {
  const head = element("tr", "", ...headings.map(([text, kind]) => element("th", kind, text)));
  const body = rows.map((cells) => element("tr", "", ...cells));
  return element("div", "scroll",
    element("table", "", element("thead", "", head), element("tbody", "", ...body)));
}

const cell = (kind, ...children) => element("td", kind, ...children);
const note = (text) => element("p", "note", text);
const sum = (list, value) => list.reduce((total, each) => total + value(each), 0);
const share = (used, total) => (total ? used / total : 0);
const known = (name) => (name === "latency_sensitive" ? name : "best_effort");
const figures = (pairs) => element("div", "numbers",
  ...pairs.map(([label, value]) => element("div", "label", label, element("b", "", value))));
const card = (title, value, ...rest) =>
  element("div", "card", element("h3", "", title), element("p", "value", ...value), ...rest);
