// Keeps the page's numbers fresh: /stats.json once a second while the page is seen. The same figures as figures.py.
"use strict";

const REFRESH_MS = 1000;
const ANSWER_MS = 8000;
const STATES = ["done", "running", "queued", "failed", "cancelled", "skipped"];
const ENDED_JOB_STATES = ["done", "failed", "cancelled"];
const BAR_WIDTH = 1000;
const SPARK_HEIGHT = 40;

const count = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
const rate = (perSecond) => (perSecond < 9.95 ? (Math.floor(perSecond * 10 + 0.5) / 10).toFixed(1) : count(Math.floor(perSecond + 0.5)));
const two = (number) => String(number).padStart(2, "0");
const clock = (iso) => (iso ? `${iso.slice(11, 19)} UTC` : "–");
const ended = (counts) => counts.done + counts.failed + counts.cancelled + counts.skipped;
const total = (counts) => ended(counts) + counts.queued + counts.running;
const percent = (counts, tasks) => (tasks ? `${Math.floor((100 * ended(counts)) / tasks)} %` : "0 %");
const share = (used, whole) => (whole ? Math.min(BAR_WIDTH, Math.floor((BAR_WIDTH * used) / whole)) : 0);
const highest = (rates) => rates.reduce((top, each) => (each !== null && each > top ? each : top), 0);
const failures = (counts) => (counts.failed ? `${count(counts.failed)} failed` : "");
const more = (number, shown, command) => (number > shown ? `and ${count(number - shown)} more: ${command}` : "");
const waiting = (pending) => (pending ? `${count(pending)} ${pending === 1 ? "waits" : "wait"} to be let in` : "");
const notReachable = (since) => `coordinator not reachable since ${clock(since)}`;
const timeLeft = (state, eta) => (ENDED_JOB_STATES.includes(state) ? "" : duration(eta));
const fault = (each) => `${each.name}: ${count(each.problems)} ${each.problems === 1 ? "problem" : "problems"}`;
const states = (numbers) =>
  Object.entries(numbers)
    .map(([state, number]) => `${count(number)} ${state}`)
    .join(", ") || "none has joined";

function duration(seconds) {
  if (seconds === null) return "–";
  const whole = Math.max(0, Math.floor(seconds + 0.5));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${two(Math.floor((whole % 86400) / 3600))} h`;
}

function sparkLine(rates, area) {
  const top = highest(rates) || 1;
  let path = "";
  let run = [];
  [...rates, null].forEach((each, x) => {
    if (each !== null) {
      run.push([x, `${x} ${(SPARK_HEIGHT - 1 - (each / top) * (SPARK_HEIGHT - 3)).toFixed(1)}`]);
    } else if (run.length) {
      const line = run.map((point) => point[1]).join("L");
      path += area ? `M${run[0][0]} ${SPARK_HEIGHT}L${line}L${run[run.length - 1][0]} ${SPARK_HEIGHT}Z` : `M${line}`;
      run = [];
    }
  });
  return path;
}

// Only what changed is touched: a selection or a screen reader's place stays where it is.
function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function attribute(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const byId = (id) => document.getElementById(id);
const put = (id, value) => text(byId(id), value);
const part = (row, name) => row.querySelector(`[data-of=${name}]`);

function bar(svg, counts, tasks) {
  let before = 0;
  STATES.forEach((state, i) => {
    const x = tasks ? Math.floor((BAR_WIDTH * before) / tasks) : 0;
    before += counts[state];
    const end = tasks ? Math.floor((BAR_WIDTH * before) / tasks) : 0;
    const rect = svg.querySelectorAll("rect")[i];
    attribute(rect, "x", x);
    attribute(rect, "width", end - x);
  });
}

function chip(row, state) {
  const node = part(row, "state");
  text(node, state);
  attribute(node, "class", `chip ${state}`);
}

function fillJob(row, job) {
  text(part(row, "job"), String(job.job));
  text(part(row, "name"), job.name || job.definition);
  attribute(part(row, "name"), "title", job.name || job.definition);
  text(part(row, "definition"), job.definition);
  chip(row, job.state);
  bar(row.querySelector("svg"), job.counts, job.tasks);
  text(part(row, "percent"), percent(job.counts, job.tasks));
  text(part(row, "ended"), `${count(ended(job.counts))} of ${count(job.tasks)}`);
  text(part(row, "failed"), failures(job.counts));
  text(part(row, "eta"), timeLeft(job.state, job.eta_s));
}

function fillWorker(row, worker) {
  text(part(row, "name"), worker.name);
  chip(row, worker.state);
  attribute(row.querySelector("rect"), "width", share(worker.running, worker.slots));
  text(part(row, "slots"), `${worker.running} of ${worker.slots}`);
  text(part(row, "seen"), `${duration(worker.last_seen_s)} ago`);
}

// Rows keep their element as long as their key is shown.
function rows(body, template, entries, keyOf, fill) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  entries.forEach((entry, i) => {
    const key = String(keyOf(entry));
    let row = old.get(key);
    old.delete(key);
    if (!row) {
      row = template.content.firstElementChild.cloneNode(true);
      row.dataset.key = key;
    }
    fill(row, entry);
    if (body.children[i] !== row) body.insertBefore(row, body.children[i] || null);
  });
  old.forEach((row) => row.remove());
}

function list(node, lines) {
  if ([...node.children].map((item) => item.textContent).join("\n") === lines.join("\n")) return;
  node.replaceChildren(
    ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
  );
}

function link(reachable, message) {
  put("link-text", message);
  attribute(byId("link"), "class", reachable ? "link up" : "link down");
  attribute(byId("main"), "class", reachable ? "" : "stale");
}

function showHead(stats) {
  put("name", stats.name || "districomp");
  document.title = `${stats.name || "districomp"} · districomp`;
  put("cluster", stats.cluster || "–");
  put("version", stats.version);
  put("epoch", count(stats.epoch));
  put("uptime", duration(stats.uptime_s));
  put("at", clock(stats.at));
  const { reachable, since } = stats.coordinator;
  link(reachable, reachable ? "coordinator reachable" : notReachable(since));
}

function showNumbers(stats) {
  const rates = stats.rates.tasks_per_s;
  put("rate", rate(stats.tasks_per_s));
  put("highest", rate(highest(rates)));
  attribute(byId("spark-line"), "d", sparkLine(rates, false));
  attribute(byId("spark-area"), "d", sparkLine(rates, true));
  put("slots-used", count(stats.slots.used));
  put("slots-total", count(stats.slots.total));
  put("slots-free", count(Math.max(0, stats.slots.total - stats.slots.used)));
  attribute(byId("slots-bar"), "width", share(stats.slots.used, stats.slots.total));
  put("workers-total", count(stats.workers.total));
  put("workers-states", states(stats.workers.states));
  put("workers-pending", waiting(stats.workers.pending));
  put("jobs-unended", count(stats.jobs.unended));
  put("jobs-total", count(stats.jobs.total));
  put("tasks-total", count(total(stats.tasks)));
  bar(byId("tasks-bar"), stats.tasks, total(stats.tasks));
  STATES.forEach((state) => put(`tasks-${state}`, count(stats.tasks[state])));
}

function showTables(stats) {
  const { jobs, workers, definitions } = stats;
  rows(byId("jobs"), byId("job-row"), jobs.shown, (job) => job.job, fillJob);
  rows(byId("workers"), byId("worker-row"), workers.shown, (worker) => worker.worker, fillWorker);
  byId("jobs-table").hidden = jobs.total === 0;
  byId("workers-table").hidden = workers.total === 0;
  byId("no-jobs").hidden = stats.at === null || jobs.total > 0;
  byId("no-workers").hidden = stats.at === null || workers.total > 0;
  put("jobs-more", more(jobs.total, jobs.shown.length, "dctl job list"));
  put("workers-more", more(workers.total, workers.shown.length, "dctl worker list"));
  byId("faulty").hidden = definitions.faulty.length === 0;
  list(byId("faulty-list"), definitions.faulty.map(fault));
}

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const answer = await fetch("/stats.json", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const stats = await answer.json();
    showHead(stats);
    showNumbers(stats);
    showTables(stats);
    document.documentElement.dataset.refreshed = String(Number(document.documentElement.dataset.refreshed || 0) + 1);
  } catch {
    link(false, "the web server does not answer; trying again");
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, REFRESH_MS);
}

document.addEventListener("visibilitychange", refresh);
refresh();
