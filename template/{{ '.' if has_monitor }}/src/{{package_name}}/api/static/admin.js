// The jobs page: shows what GET state returns, every two seconds, and posts what is to be done.

const FILTERS = { status: "", task: "", search: "", limit: "50", job: "" }; // in the URL's hash
const UNFINISHED = ["queued", "deferred", "in_progress"];
const STATUSES = ["", ...UNFINISHED, "complete", "failed", "aborted"];
const ALLOWED = { retry: ["failed"], abort: UNFINISHED, delete: ["failed"] };
const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }; // from row to row, by key
const UNITS = [["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];
const INVISIBLE = /[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const AWAY = "The service does not answer. This page tries again every 2 seconds.";
const base = location.origin + location.pathname; // without a password that the address may hold
const relative = new Intl.RelativeTimeFormat("en", { style: "narrow" });
const $ = (id) => document.getElementById(id);
const boxes = () => [...$("jobs").querySelectorAll("input")];
const label = (status) => (status === "in_progress" ? "running" : status);
let view, state, request, timer, acting;

async function ask(path, options) {
  const answer = await fetch(new URL(path, base), options).catch(() => undefined);
  const body = await answer?.json().catch(() => undefined);
  return answer?.ok && body ? [body, ""] : [undefined, body?.detail ?? AWAY];
}

async function refresh() {
  clearTimeout(timer);
  request?.abort();
  if (acting || document.hidden) return;
  const { signal } = (request = new AbortController());
  const either = AbortSignal.any([signal, AbortSignal.timeout(10_000)]);
  const filters = new URLSearchParams(Object.entries(view).filter(([, value]) => value));
  const [answer, problem] = await ask(`state?${filters}`, { signal: either });
  if (signal.aborted) return; // for a newer request
  timer = setTimeout(refresh, 2000);
  say(problem, "[role=alert]");
  if (!problem) show((state = answer));
}

async function act(action, targets) {
  const which = targets.length > 1 ? `${targets.length} jobs` : "this job";
  if (acting || (["abort", "delete"].includes(action) && !confirm(`${action} ${which}?`))) return;
  acting = true;
  clearTimeout(timer);
  request.abort();
  const signal = AbortSignal.timeout(30_000);
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify({ targets }), signal };
  const [refused, problem] = await ask(action, options);
  const reasons = Object.values(refused ?? {});
  const done = `${targets.length - reasons.length} of ${targets.length}`;
  say(problem || `${action}: done for ${done}. ${reasons[0] ?? ""}`);
  boxes().forEach((box) => Object.assign(box, { checked: false }));
  acting = false;
  refresh();
}

function link(change) {
  const filters = Object.entries({ ...view, ...change });
  return `#${new URLSearchParams(filters.filter(([name, value]) => value !== FILTERS[name]))}`;
}

function go(change, how = "pushState") {
  history[how](null, "", link(change));
  navigate();
}

function navigate() {
  view = { ...FILTERS, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
  if ($("search").value !== view.search) $("search").value = view.search;
  if (!view.job) $("details").close();
  refresh();
}

// What jobs contain comes into the page here alone: as text, with what is invisible made visible.
function write(node, text) {
  const escape = (char) => `\\u${char.charCodeAt().toString(16).padStart(4, "0")}`;
  const visible = String(text).replace(INVISIBLE, escape);
  if (node.textContent !== visible) node.textContent = visible;
}

function say(text, where = "output") {
  document.querySelectorAll(where).forEach((place) => write(place, text));
}

// Make the contents of an element a text, or elements given as [tag, properties, contents].
// One with the same tag and key stays, and with it the focus, and a click that has begun.
function render(parent, contents) {
  if (!Array.isArray(contents)) return write(parent, contents);
  const keys = contents.map(([tag, { key }], n) => `${tag} ${key ?? n}`);
  const old = new Map([...parent.children].map((child) => [child.key, child]));
  old.forEach((child, key) => keys.includes(key) || child.remove());
  contents.forEach(([tag, properties, inner], n) => {
    const child = old.get(keys[n]) ?? document.createElement(tag);
    Object.assign(child, properties, { key: keys[n] });
    render(child, inner);
    if (parent.children[n] !== child) parent.insertBefore(child, parent.children[n] ?? null);
  });
}

function ago(time) {
  const seconds = (Date.parse(time) - Date.parse(state.now)) / 1000;
  const [unit, size] = UNITS.find((each) => each[1] <= Math.abs(seconds)) ?? UNITS.at(-1);
  return relative.format(Math.trunc(seconds / size), unit);
}

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

function took({ started_at, finished_at }) {
  const end = Date.parse(finished_at ?? state.now);
  return started_at ? duration(Math.max(0, end - Date.parse(started_at)) / 1000) : "";
}

function show({ service, overview, jobs, job, texts }) {
  const focused = document.activeElement;
  const index = focused.closest("tbody tr")?.sectionRowIndex;
  document.title = $("title").textContent = `${service}: jobs`;
  showOverview(overview);
  render($("jobs"), jobs.map(describeRow));
  write($("empty"), jobs.length ? "" : "There are no such jobs.");
  $("more").hidden = jobs.length < view.limit || view.limit === "500";
  if (view.job) showDetails(job, texts);
  showActions();
  if (focused.isConnected) focused.focus({ preventScroll: true });
  else if (index >= 0) focusRow(index);
}

function showOverview({ counts, dead, minutes, queues, workers, periodic, tasks }) {
  const entry = (name, text, ...more) =>
    ["li", { key: name }, [["b", {}, name], ...more, ["small", {}, text]]];
  render($("counts"), STATUSES.map((status) => ["button", {
    ariaPressed: view.status === status, onclick: () => go({ status, limit: FILTERS.limit }),
  }, [
    ["b", {}, status ? (counts[status] ?? 0).toLocaleString("en") : "All"],
    ["span", {}, status ? label(status) : "statuses"],
    ["small", {}, status === "failed" && dead ? ` ${dead} to retry` : ""],
  ]]));
  render($("queues"), queues.map(({ name, waiting, running, oldest_seconds, paused }) => {
    const action = paused ? "resume" : "pause";
    const oldest = oldest_seconds > 1 ? `, the oldest for ${duration(oldest_seconds)}` : "";
    const text = `${paused ? "paused: " : ""}${running} running, ${waiting} waiting${oldest}`;
    const onclick = () => act(action, [name]);
    return entry(name, text, ["button", { ariaLabel: `${action} ${name}`, onclick }, action]);
  }));
  render($("workers"), workers.map(({ name, jobs }) => {
    const links = jobs.slice(0, 5).map((job) =>
      ["a", { key: job.job_id, href: link({ job: job.job_id }) }, `${job.function} ${took(job)}`]);
    return entry(name, `${jobs.length || "nothing"} running`, ...links);
  }));
  render($("periodic"), periodic.map((task) =>
    entry(task.function, `${task.schedule}, next ${ago(task.next_run)}`)));
  const names = [...new Set(["", ...tasks, view.task])];
  render($("task"), names.map((value) => ["option", { value }, value || "All tasks"]));
  $("task").value = view.task;
  showHour(minutes);
}

function showHour(minutes) {
  const most = Math.max(1, ...minutes.map((each) => each.complete + each.failed));
  const tops = minutes.map(() => 100);
  for (const kind of ["complete", "failed"]) {
    const bars = minutes.map(({ [kind]: count }, n) => {
      const height = count && Math.max(2, (96 * count) / most); // a single one is seen, too
      return `M${n + 0.1} ${(tops[n] -= height)}h.8v${height}h-.8z`;
    });
    $(`plot-${kind}`).setAttribute("d", bars.join(""));
    write($(kind), minutes.reduce((sum, each) => sum + each[kind], 0).toLocaleString("en"));
  }
  write($("most"), `${most} a minute`);
}

function describeRow(job) {
  const { job_id: key, status, started_at, finished_at, due_at, enqueued_at } = job;
  const time = finished_at ?? (status === "in_progress" ? started_at : due_at) ?? enqueued_at;
  const properties = { type: "checkbox", ariaLabel: `Select job ${key}`, onchange: showActions };
  return ["tr", { key }, [
    ["td", {}, [["label", {}, [["input", properties, ""]]]]],
    ["td", {}, [
      ["a", { href: link({ job: key }) }, job.function ?? "?"],
      ["small", {}, key],
      ["span", { className: "failed" }, job.error ?? ""],
    ]],
    ["td", {}, [["span", { className: `status ${status}` }, label(status)]]],
    ["td", { className: "wide" }, job.attempts],
    ["td", {}, time ? ago(time) : ""],
    ["td", { className: "wide" }, took(job)],
  ]];
}

function showDetails(job, texts) {
  if (!$("details").open) $("details").showModal();
  write($("name"), job ? (job.function ?? "?") : "There is no such job, or it has been forgotten.");
  const facts = job ? [["Id", job.job_id], ["Status", label(job.status)],
    ["Queue", job.queue ?? "?"], ["Attempts", job.attempts], ["Took", took(job)]] : [];
  for (const event of ["Enqueued", "Due", "Started", "Finished"]) {
    const time = job?.[`${event.toLowerCase()}_at`];
    if (time) facts.push([event, `${new Date(time).toLocaleString()}, ${ago(time)}`]);
  }
  render($("facts"), facts.flatMap(([name, fact]) => [["dt", {}, name], ["dd", {}, fact]]));
  render($("texts"), Object.entries(texts).map(([title, text]) =>
    ["section", { key: title }, [["h2", {}, title], ["pre", { tabIndex: 0 }, text]]]));
}

function showActions() {
  const selected = boxes().flatMap((box, n) => (box.checked ? [state.jobs[n]] : []));
  $("all").checked = selected.length > 0 && selected.length === state.jobs.length;
  for (const button of document.querySelectorAll("[data-action]")) {
    const { action } = button.dataset;
    const jobs = button.closest("dialog") ? [state.job ?? {}] : selected;
    const allowed = jobs.filter(({ status, dead }) =>
      ALLOWED[action].includes(status) && (action === "abort" || dead !== false));
    button.disabled = !allowed.length;
    button.onclick = () => act(action, allowed.map((job) => job.job_id));
  }
}

function focusRow(index) {
  const links = [...$("jobs").querySelectorAll("a")];
  links.at(Math.max(0, Math.min(index, links.length - 1)))?.focus();
}

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.altKey || event.metaKey || $("details").open) return;
  if (target.matches("[type=search], select")) return;
  const index = target.closest("tbody tr")?.sectionRowIndex ?? -1;
  if (key in STEPS) focusRow(index + STEPS[key]);
  else if (key === "x") boxes()[index]?.click();
  else if (key === "a") $("all").click();
  else if (key === "/") $("search").focus();
  else return;
  event.preventDefault();
});
$("search").oninput = () => {
  clearTimeout(timer);
  timer = setTimeout(() => go({ search: $("search").value }, "replaceState"), 200);
};
$("task").onchange = () => go({ task: $("task").value });
$("all").onchange = () => {
  boxes().forEach((box) => Object.assign(box, { checked: $("all").checked }));
  showActions();
};
$("more").onclick = () => go({ limit: String(Math.min(2 * view.limit, 500)) });
$("close").onclick = () => $("details").close();
$("details").onclose = () => view.job && go({ job: "" });
document.onvisibilitychange = refresh;
addEventListener("popstate", navigate);
navigate();
