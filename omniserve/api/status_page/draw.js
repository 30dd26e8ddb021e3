// Elements, small pictures and numbers as text. Whatever is shown is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const MOST_POINTS = 100, LEAST_POINTS = 30;

export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// `all` are the last minutes, the newest last and at the right; `top` is as low as the scale may end.
export function sparkline(all, top, label) {
  const points = thinned(all), room = Math.max(LEAST_POINTS, points.length);
  const width = 300, height = 40;
  const highest = Math.max(top, ...points, 1e-9);
  const step = width / Math.max(1, room - 1);
  const first = width - step * (points.length - 1);
  const places = points.map((point, index) => {
    const y = height - 2 - (Math.max(0, point) / highest) * (height - 4);
    return `${(first + index * step).toFixed(1)},${y.toFixed(1)}`;
  });
  const box = { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
    role: "img", "aria-label": label };
  const title = shape("title", {});
  title.textContent = label;
  if (places.length < 2) return shape("svg", box, title);
  const area = `M${first.toFixed(1)},${height}L${places.join("L")}L${width},${height}Z`;
  return shape("svg", box, title, shape("path", { class: "area", d: area }),
    shape("polyline", { class: "line", points: places.join(" ") }));
}

// Means of as many neighbours as it takes to have no more points than can be told apart.
function thinned(points) {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return points;
  const means = [];
  for (let end = points.length; end > 0; end -= size) {
    const group = points.slice(Math.max(0, end - size), end);
    means.unshift(group.reduce((sum, point) => sum + point, 0) / group.length);
  }
  return means;
}

// A bar that is full at 1; `mark` is where an objective lies.
export function meter(share, label, mark = null) {
  const fill = element("div", "fill");
  fill.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  const made = element("div", "meter", fill);
  if (mark !== null) {
    const line = element("div", "mark");
    line.style.left = `calc(${(100 * mark).toFixed(1)}% - 1px)`;
    made.append(line);
  }
  made.setAttribute("role", "meter");
  made.setAttribute("aria-label", label);
  made.setAttribute("aria-valuemin", "0");
  made.setAttribute("aria-valuemax", "1");
  made.setAttribute("aria-valuenow", String(share));
  return made;
}

// A bar for each layer: rows that wait to join on top of those that are on the host.
export function lanes(onHost, ready) {
  const height = 76, step = 100 / Math.max(1, onHost.length);
  const highest = Math.max(1, ...onHost.map((count, layer) => count + (ready[layer] ?? 0)));
  const scale = (height - 4) / highest;
  const parts = onHost.map((count, layer) => {
    const x = (layer * step + step * 0.1).toFixed(3), width = (step * 0.8).toFixed(3);
    const waiting = ready[layer] ?? 0;
    const low = height - 2 - count * scale, high = low - waiting * scale;
    const title = shape("title", {});
    title.textContent = `layer ${layer}: ${count} on the host, ${waiting} ready`;
    return shape("g", {}, title,
      shape("rect", { class: "base", x, width, y: height - 2, height: 2 }),
      shape("rect", { class: "host", x, width, y: low, height: count * scale }),
      shape("rect", { class: "ready", x, width, y: high, height: waiting * scale }));
  });
  return shape("svg", { class: "lanes", viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `Rows by layer, at most ${highest}` }, ...parts);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const number = (value) => whole.format(value);
export const rate = (value) => (value < 10 ? tenth : whole).format(value);
export const percent = (share) => `${tenth.format(100 * share)} %`;

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (count >= 1024 && place < units.length - 1) { count /= 1024; place += 1; }
  return `${(count < 10 && place ? tenth : whole).format(count)} ${units[place]}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${tenth.format(seconds)} s`;
  if (seconds < 60) return `${whole.format(Math.floor(seconds))} s`;
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => seconds >= size);
  return parts.slice(first, first + 2).map(([unit, size]) => {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    return `${count} ${unit}`;
  }).join(" ");
}
