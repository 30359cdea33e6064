"use strict";
// Who is busy when: a lane each, and a slider through the run.

const timeline = { place: 1, whole: false };
const LANE = 22, LABEL = 130, MOST_BARS = 700;

function drawTimeline(doc) {
  const data = doc.timeline;
  const section = byId("timeline");
  section.hidden = !data || !data.bars.length;
  if (section.hidden) return;
  const end = data.bars.reduce((most, bar) => Math.max(most, bar[2]), 0);
  const span = end - data.from;
  const width = timeline.whole ? span : span * Math.min(1, (MOST_BARS / 4) / data.bars.length);
  const slider = el("input", { type: "range", min: "0", max: "1", step: "any", value: timeline.place,
    "aria-label": "moment", oninput: (event) => { timeline.place = Number(event.target.value); show(); } });
  const whole = el("input", { type: "checkbox", onchange: (event) => {
    timeline.whole = event.target.checked; drawTimeline(doc); } });
  whole.checked = timeline.whole;
  const output = el("output"), picture = el("div");
  const show = () => {
    const from = data.from + timeline.place * (span - width);
    output.textContent = `${from.toFixed(1)} to ${(from + width).toFixed(1)} ${doc.clock}`;
    picture.replaceChildren(lanes(data, from, from + width, Math.max(320, section.clientWidth)));
  };
  const kinds = Object.entries(data.kinds).map(([kind, name]) =>
    el("span", {}, el("i", { style: `background:var(--${name})` }), kind));
  section.replaceChildren(el("h2", {}, "Who is busy when"),
    el("div", { class: "legend" }, ...kinds), picture,
    el("div", { class: "control" }, slider, output, el("label", {}, whole, " all of it")));
  if (data.cut) section.append(el("p", { class: "marks" }, `${data.cut} earlier bars are left out.`));
  show();
}

function lanes(data, from, to, room) {
  const label = room < 600 ? 84 : LABEL;
  const width = room - label - 12, height = data.lanes.length * LANE;
  const x = (t) => label + (width * (Math.min(to, Math.max(from, t)) - from)) / (to - from || 1);
  const root = svg("svg", { viewBox: `0 0 ${room} ${height + 22}`, width: room, height: height + 22,
    role: "img", "aria-label": `${data.lanes.length} lanes from ${from.toFixed(1)} to ${to.toFixed(1)}` });
  data.lanes.forEach((name, row) => {
    const short = room < 600 ? name.replace("participant", "part.").replace("distillation ", "") : name;
    root.append(svg("text", { x: 0, y: row * LANE + 15 }, short));
    root.append(svg("line", { class: "axis", x1: label, x2: label + width, y1: row * LANE + 20, y2: row * LANE + 20 }));
  });
  for (const [lane, start, stop, kind, note] of data.bars) {
    if (stop < from || start > to) continue;
    const left = x(start);
    const bar = svg("rect", { x: left, y: lane * LANE + 2, height: LANE - 6, rx: 1.5,
      width: Math.max(0.8, x(stop) - left), style: `fill:var(--${data.kinds[kind]})` });
    root.append(titled(bar, `${kind}, ${start.toFixed(2)} to ${stop.toFixed(2)}${note ? `, ${note}` : ""}`));
  }
  const ticks = room < 600 ? 3 : 6;
  for (let k = 0; k <= ticks; k++) {
    const t = from + ((to - from) * k) / ticks;
    root.append(svg("text", { x: x(t), y: height + 16,
      "text-anchor": k === ticks ? "end" : k ? "middle" : "start" }, t.toFixed(to - from < 10 ? 2 : 0)));
  }
  return root;
}
