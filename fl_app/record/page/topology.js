"use strict";
// Nodes coloured by the run's metric, edges by their last exchange, at the moment of the slider.

const topology = { frame: null, timer: 0 };
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];

function drawTopology(doc) {
  const data = doc.topology;
  const section = byId("topology");
  section.hidden = !data;
  if (section.hidden) return;
  const last = data.frames.length - 1;
  const follow = topology.frame === null || topology.frame >= last - 1;
  if (follow) topology.frame = last;
  const [low, high] = range(data.frames);
  const room = Math.min(720, Math.max(300, section.clientWidth));
  const { root, nodes, edges } = graph(data, room);
  const output = el("output");
  const slider = el("input", { type: "range", min: 0, max: Math.max(0, last), step: 1,
    value: Math.max(0, topology.frame), "aria-label": "moment", oninput: (event) => show(Number(event.target.value)) });
  const show = (frame) => {
    topology.frame = frame;
    slider.value = frame;
    const now = data.frames[frame];
    if (!now) { output.textContent = "nothing evaluated yet"; return; }
    const since = now.t - (frame ? data.frames[frame - 1].t : 0);
    output.textContent = `at ${now.t.toFixed(1)} ${doc.clock}`;
    nodes.forEach((node, i) => paint(node, now.values[i], low, high, doc.metric, data.names[i]));
    edges.forEach((edge, k) => use(edge, now.heard[k], since));
  };
  const play = el("button", { type: "button", onclick: () => {
    clearInterval(topology.timer);
    let frame = topology.frame >= last ? 0 : topology.frame;
    topology.timer = setInterval(() => {
      show(frame);
      if (++frame > last) clearInterval(topology.timer);
    }, 400);
  } }, "play");
  const shown = (value) => written(value * doc.metric.scale, doc.metric.unit);
  const scale = el("div", { class: "legend" }, el("span", {}, shown(low), " ", el("span", { class: "scale",
    style: `background:linear-gradient(90deg,${CIVIDIS.map((c) => `rgb(${c})`).join(",")})` }), " ", shown(high)),
    el("span", {}, el("i", { style: "background:var(--vermilion)" }), "exchanged since the moment before"),
    el("span", {}, "dashed circle: off"));
  section.replaceChildren(el("h2", {}, `Topology: ${data.about}`), scale, root,
    el("div", { class: "control graph" }, play, slider, output));
  show(topology.frame);
}

function range(frames) {
  const known = frames.flatMap((frame) => frame.values).filter((value) => value !== null);
  if (!known.length) return [0, 1];
  const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  return high - low < 0.02 ? [high - 0.02, high] : [low, high];
}

function graph(data, room) {
  const many = data.names.length;
  const radius = Math.max(3, Math.min(17, 130 / Math.sqrt(many)));
  const wide = Math.max(...data.places.map((p) => p[0]), 0.05), high = Math.max(...data.places.map((p) => p[1]), 0.05);
  const side = Math.min(room, 480 / Math.max(high, 0.4)) - 4 * radius;
  const at = ([x, y]) => [2 * radius + x * side, 2 * radius + (high - y) * side];
  const width = wide * side + 4 * radius, height = high * side + 4 * radius;
  const root = svg("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, role: "img", width, height,
    style: "max-width:100%", "aria-label": `a graph: ${data.about}` });
  const edges = data.edges.map(([i, j]) => {
    const [[x1, y1], [x2, y2]] = [at(data.places[i]), at(data.places[j])];
    const line = svg("line", { class: "edge", x1, y1, x2, y2, "stroke-width": many > 60 ? 1 : 2.5 });
    root.append(titled(line, ""));
    return line;
  });
  const nodes = data.places.map((place, i) => {
    const [cx, cy] = at(place);
    const circle = titled(svg("circle", { cx, cy, r: radius }), "");
    root.append(circle);
    const text = svg("text", { x: cx, y: cy + 4, "text-anchor": "middle", "pointer-events": "none" }, data.names[i]);
    if (many <= 60) root.append(text);
    return { circle, text };
  });
  return { root, nodes, edges };
}

function paint({ circle, text }, value, low, high, metric, name) {
  const off = value === null || value === undefined;
  circle.classList.toggle("off", off);
  circle.style.fill = "";
  text.style.fill = "";
  circle.querySelector("title").textContent =
    `node ${name}: ${off ? "off" : written(value * metric.scale, metric.unit)}`;
  if (off) return;
  const place = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (CIVIDIS.length - 1);
  const k = Math.min(CIVIDIS.length - 2, Math.floor(place));
  const mixed = CIVIDIS[k].map((c, i) => Math.round(c + (place - k) * (CIVIDIS[k + 1][i] - c)));
  circle.style.fill = `rgb(${mixed})`;
  text.style.fill = place > 2.4 ? "#000" : "#fff";
}

function use(edge, heard, since) {
  const used = heard !== null && heard !== undefined && heard <= since;
  edge.classList.remove("flash");
  edge.classList.toggle("used", used);
  if (used) { void edge.getBBox(); edge.classList.add("flash"); }
  edge.style.opacity = heard === null || heard === undefined ? 0.25 : used ? 1 : 0.55;
  edge.querySelector("title").textContent = heard === null || heard === undefined
    ? "no exchange yet" : `last exchange ${heard.toFixed(2)} s before`;
}
