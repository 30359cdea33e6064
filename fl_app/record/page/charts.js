"use strict";
// Curves over the run's clock, by uPlot. A value is shown as the run's view gives it.

const charts = { drawn: [], key: "" };

function drawCharts(doc, other) {
  const lists = doc.charts.map((chart) => ({ ...chart, lines: [...chart.lines] }));
  if (other) compareWith(lists, other);
  const key = JSON.stringify([
    doc.name, doc.metric, doc.targets.map((t) => t.value),
    lists.map((c) => [c.title, c.marks, c.lines.map((line) => line.label)]),
  ]);
  const tables = lists.map((chart) => joined(chart, doc.metric));
  if (key === charts.key) {
    charts.drawn.forEach((plot, i) => plot.setData(tables[i]));
    byId("charts").querySelectorAll(".targets").forEach((words) => words.replaceWith(reached(doc.targets)));
    return;
  }
  charts.drawn.forEach((plot) => plot.destroy());
  charts.key = key;
  const places = lists.map(() => el("div", { class: "chart" }));
  byId("charts").replaceChildren(...places);
  charts.drawn = lists.map((chart, i) => plot(places[i], chart, tables[i], doc, i === 0));
}

// The curve that stands for the other run, and its time to the right of none of ours.
function compareWith(lists, other) {
  lists.forEach((chart) => {
    const same = other.charts.find((each) => each.title === chart.title);
    if (!same || !same.lines.length) return;
    const line = same.lines[0];
    chart.lines.push({ ...line, label: `${other.name}: ${line.label}`, colour: "purple", dash: [3, 3] });
  });
}

function joined(chart, metric) {
  const scale = chart.metric ? metric.scale : 1;
  const tables = chart.lines.map((line) => [
    line.points.map((p) => p[0]),
    line.points.map((p) => (p[1] === null ? null : p[1] * scale)),
  ]);
  return tables.length === 1 ? tables[0] : uPlot.join(tables);
}

function plot(place, chart, data, doc, large) {
  const unit = chart.metric ? doc.metric.unit : chart.unit;
  const shown = (value) => (value === null || value === undefined ? "–" : written(value, unit, chart.log));
  const what = chart.metric ? `${doc.metric.name}, ${doc.evaluated}` : "";
  const heading = el("h2", {}, chart.title);
  const about = el("p", { class: "marks" }, [what, unit && `in ${unit}`].filter(Boolean).join(", "));
  const box = el("div", { tabindex: "0", role: "img",
    "aria-label": `${chart.title}: ${chart.lines.map((line) => line.label).join(", ")}. Arrow keys move the cursor.` });
  place.append(heading, about, box);
  const series = [{ label: doc.clock, value: (u, v) => (v ?? last(u.data[0]) ?? 0).toFixed(1) }];
  chart.lines.forEach((line) => series.push({
    label: line.label, width: line.width, dash: line.dash, spanGaps: true,
    stroke: () => colour(line.colour), points: { show: line.points.length < 60, size: 4 + line.width },
    // Without a cursor: what the line ends with.
    value: (u, value, i) => shown(value ?? (u.cursor.idx === null || u.cursor.idx === undefined ? last(u.data[i]) : null)),
  }));
  const index = (label) => 1 + chart.lines.findIndex((line) => line.label === label);
  const bands = chart.band.length
    ? [{ series: [index(chart.band[1]), index(chart.band[0])], fill: () => `${colour("sky")}40` }] : [];
  const axis = (more) => ({ stroke: () => colour("soft"), grid: { stroke: () => colour("faint") },
    ticks: { stroke: () => colour("edge") }, font: "12px system-ui, sans-serif", ...more });
  const size = () => ({ width: Math.max(240, box.clientWidth), height: large ? 380 : 210 });
  const targets = chart.metric ? doc.targets : [];
  const drawn = new uPlot({
    ...size(), series, bands,
    legend: { markers: { width: 2, dash: (u, i) => stroked(series[i].dash) } },
    scales: { x: { time: false }, y: chart.log ? { distr: 3 } : { range: (u, low, high) => room(low, high) } },
    axes: [axis({ label: `time, ${doc.clock}`, labelSize: 18, labelFont: "12px system-ui, sans-serif" }), axis({ size: 58, ...(chart.log ? { splits: (u, i, low, high) => powers(low, high), filter: (u, splits) => splits,
        values: (u, splits) => splits.map((v) => v.toExponential(0)) } : {}) })],
    cursor: { drag: { x: true, y: false } },
    hooks: { drawAxes: [(u) => guides(u, targets, doc.metric.scale, chart.marks)] },
  }, data, box);
  box.addEventListener("keydown", (event) => step(drawn, event));
  new ResizeObserver(() => drawn.setSize(size())).observe(box);
  if (targets.length) place.append(reached(targets));
  if (chart.marks.length) {
    place.append(el("p", { class: "marks" }, "Vertical lines: ", chart.marks.slice(0, 8)
      .map(([t, text]) => `${text} (${t.toFixed(1)})`).join("; "), chart.marks.length > 8 ? " …" : ""));
  }
  return drawn;
}

// How the legend draws what the lines are told apart by besides their colours.
function stroked(dash) {
  return !dash?.length ? "solid" : dash[0] > dash[1] && dash[0] > 3 ? "dashed" : "dotted";
}

function last(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}

// At most six powers of ten of [low, high]; where there are fewer than two, their halves and fifths, too.
function powers(low, high) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const within = (parts, step) => {
    const found = [];
    for (let k = from; k <= to; k += step) found.push(...parts.map((part) => part * 10 ** k));
    return found.filter((value) => value >= low && value <= high);
  };
  const whole = within([1], Math.max(1, Math.ceil((to - from) / 5)));
  return whole.length > 1 ? whole : within([1, 2, 5], 1);
}

function written(value, unit, log) {
  if (log || (value !== 0 && Math.abs(value) < 0.001)) return value.toExponential(1);
  if (unit === "%") return `${value.toFixed(1)} %`;
  return unit && Number.isInteger(value) ? String(value) : value.toFixed(3);
}

function room(low, high) {
  if (low === null) return [0, 1];
  const margin = high === low ? Math.abs(high) / 2 || 1 : 0.06 * (high - low);
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

function guides(u, targets, scale, marks) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.setLineDash([2, 4]);
  ctx.strokeStyle = colour("grey");
  const line = (x1, y1, x2, y2) => { ctx.beginPath(); ctx.moveTo(x1, y1); ctx.lineTo(x2, y2); ctx.stroke(); };
  for (const { value } of targets) {
    const y = u.valToPos(value * scale, "y", true);
    if (y >= bbox.top && y <= bbox.top + bbox.height) line(bbox.left, y, bbox.left + bbox.width, y);
  }
  for (const [t] of marks) {
    const x = u.valToPos(t, "x", true);
    if (x >= bbox.left && x <= bbox.left + bbox.width) line(x, bbox.top, x, bbox.top + bbox.height);
  }
  ctx.restore();
}

function reached(targets) {
  const words = targets.map((t) => `${t.label}: ${t.reached === null ? "not reached" : `after ${t.reached}`}`);
  return el("p", { class: "marks targets" }, `Dotted lines, targets. ${words.join("; ")}.`);
}

// Arrow keys move the cursor from one evaluation to the next.
function step(u, event) {
  const times = u.data[0];
  const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (move === undefined || !times.length) return;
  event.preventDefault();
  const from = u.cursor.idx === null || u.cursor.idx === undefined ? (move > 0 ? -1 : times.length) : u.cursor.idx;
  const to = Math.min(times.length - 1, Math.max(0, from + move));
  u.setCursor({ left: u.valToPos(times[to], "x"), top: u.over.clientHeight / 2 });
}
