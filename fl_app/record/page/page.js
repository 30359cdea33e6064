"use strict";
// The page: what the server sends (or what is frozen into this file), section by section.

const page = { doc: null, other: null, source: null, errors: [] };
const LOOK_MS = 3000;

const SECTIONS = {
  header: { of: ["name", "status", "running", "sentence", "progress", "reason", "ended"], draw: drawHeader },
  tiles: { of: ["tiles"], draw: drawTiles },
  changed: { of: ["changed", "command"], draw: drawChanged },
  charts: { of: ["charts", "targets", "metric"], draw: (doc) => drawCharts(doc, page.other) },
  timeline: { of: ["timeline"], draw: drawTimeline },
  topology: { of: ["topology", "metric"], draw: drawTopology },
  incidents: { of: ["incidents"], draw: drawIncidents },
  tables: { of: ["tables"], draw: drawTables },
  origin: { of: ["configuration", "environment", "files", "code"], draw: drawOrigin },
};

function update(changes) {
  page.doc = { ...(page.doc || {}), ...changes };
  for (const { of, draw } of Object.values(SECTIONS)) {
    if (of.some((name) => name in changes)) draw(page.doc);
  }
}

function drawHeader(doc) {
  document.title = `${doc.name} – edge-fl`;
  byId("name").textContent = doc.name;
  const badge = byId("status"), state = doc.running && !doc.ended ? "running" : doc.status;
  badge.hidden = false;
  badge.textContent = state;
  badge.className = `status ${state}`;
  byId("sentence").textContent = doc.sentence + (doc.reason ? ` ${doc.status}: ${doc.reason}` : "");
  const { done, total, eta } = doc.progress, bar = byId("progress");
  bar.hidden = doc.ended || !total || !doc.running;
  bar.firstElementChild.value = total ? done / total : 0;
  bar.lastElementChild.textContent = `${done} of ${total} ${doc.rounds}${eta === "-" ? "" : `, ${eta} to go`}`;
}

function drawTiles(doc) {
  byId("tiles").replaceChildren(...doc.tiles.map(([label, value]) =>
    el("div", { class: "tile" }, el("b", {}, value), label)));
}

function drawChanged(doc) {
  const keys = doc.changed.map(([key, value, shipped]) =>
    el("li", { title: `default: ${shipped === "" ? "empty" : shipped}` }, el("code", {}, `${key}=${value}`)));
  byId("changed").replaceChildren(el("h2", {}, "Changed keys"),
    keys.length ? el("ul", { class: "keys" }, ...keys) : el("p", { class: "marks" }, "None: this is the default run."),
    el("pre", { id: "command", tabindex: "0" }, doc.command));
}

function drawIncidents(doc) {
  const items = doc.incidents.map(({ wall, kind, text }) =>
    el("li", { class: kind }, el("time", {}, wall), text)).reverse();
  byId("incidents").replaceChildren(el("h2", {}, `Incidents and warnings: ${items.length || "none"}`),
    ...(items.length ? [el("div", { class: "scroll", tabindex: "0" }, el("ol", {}, ...items))] : []));
}

function drawTables(doc) {
  const open = new Set([...byId("tables").querySelectorAll("details[open]")].map((d) => d.dataset.title));
  byId("tables").replaceChildren(...doc.tables.map(({ title, columns, rows }, i) => {
    const box = el("details", { "data-title": title }, el("summary", {}, el("b", {}, title), ` (${rows.length})`),
      table(columns, rows));
    box.open = open.size ? open.has(title) : rows.length <= 20 && i < 2;
    return box;
  }));
}

function drawOrigin(doc) {
  const place = page.frozen ? "" : `/run/${encodeURIComponent(doc.name)}/`;
  const links = doc.files.flatMap((file) => [el("a", { href: place + file }, file), " "]);
  const pairs = (title, rows) => el("details", {}, el("summary", {}, el("b", {}, title), ` (${rows.length})`),
    table(["key", "value"], rows));
  const absent = doc.absent?.length ? [el("p", {}, `Not drawn: ${doc.absent.join("; ")}.`)] : [];
  byId("origin").replaceChildren(el("h2", {}, "Where it comes from"), ...absent,
    el("p", {}, "Code: ", el("code", {}, doc.code)), el("p", {}, "Files: ", ...links),
    el("p", { class: "marks" }, el("code", {}, doc.path)),
    pairs("All other keys that have an effect", doc.configuration), pairs("Environment", doc.environment));
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}

// ------------------------------------------------------------------------------------------ live

function follow(name) {
  page.source?.close();
  Object.assign(page, { doc: null, other: null });
  byId("other").value = "";
  byId("tables").replaceChildren();
  topology.frame = null;
  location.hash = encodeURIComponent(name);
  page.source = new EventSource(`/api/run/${encodeURIComponent(name)}/stream`);
  page.source.onmessage = (message) => { notice(""); update(JSON.parse(message.data)); };
  page.source.addEventListener("problem", (message) => notice(JSON.parse(message.data)));
  page.source.onerror = () => notice(`No answer from edge-fl: what is here is of ${new Date().toLocaleTimeString()}, or before.`);
}

async function look() {
  const answer = await fetch("/api/runs").catch(() => null);
  if (!answer || !answer.ok) return;
  const { runs, chosen, awaited } = await answer.json();
  const option = ({ name, state }) => el("option", { value: name }, `${name} (${state})`);
  const now = decodeURIComponent(location.hash.slice(1));
  const listed = (name) => runs.some((run) => run.name === name);
  // Where a run has begun after the page was opened, it is what the page is for.
  const fresh = listed(chosen) && chosen !== page.chosen;
  const wanted = fresh && (page.looked || !now) ? chosen : now || (awaited ? "" : runs[0]?.name);
  page.looked = true;
  if (fresh) page.chosen = chosen;
  const lists = [[byId("run"), [], wanted], [byId("other"), [el("option", { value: "" }, "nothing")], byId("other").value]];
  for (const [select, first, value] of lists) {
    if (document.activeElement === select) continue;
    select.replaceChildren(...first, ...runs.map(option));
    select.value = value || "";
  }
  if (!wanted && awaited) notice("The run is being set up: this page shows it as soon as it begins.");
  else if (!wanted) notice("No run yet: this page shows the first one as soon as it begins.");
  else if (!listed(wanted)) notice(`There is no run ${wanted} here.`);
  else if (wanted !== page.following) { page.following = wanted; follow(wanted); }
}

async function compare(name) {
  page.other = null;
  if (name) {
    const answer = await fetch(`/api/run/${encodeURIComponent(name)}`);
    if (answer.ok) page.other = await answer.json();
    else notice(await answer.text());
  }
  if (page.doc) drawCharts(page.doc, page.other);
}

function start() {
  const frozen = byId("frozen").textContent.trim();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    charts.key = "";  // the legends, too, have colours of their own
    if (page.doc) drawCharts(page.doc, page.other);
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width === innerWidth || !page.doc) return;
    width = innerWidth;
    drawTimeline(page.doc);
    drawTopology(page.doc);
  });
  if (frozen) {
    page.frozen = true;
    document.body.classList.add("frozen");
    update(JSON.parse(frozen));
    return;
  }
  byId("run").addEventListener("change", (event) => { page.following = event.target.value; follow(page.following); });
  byId("other").addEventListener("change", (event) => compare(event.target.value));
  look();
  setInterval(look, LOOK_MS);
}

start();
