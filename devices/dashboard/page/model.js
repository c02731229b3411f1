// What was measured, and what of it the reader looks at.

const DATA = JSON.parse(byId("data").textContent);
const METRICS = new Map(DATA.metrics.map((metric) => [metric.name, metric]));
const ARTIFACTS = Object.keys(DATA.artifacts);
const DEVICES = Object.keys(DATA.devices);
const WORKLOADS = [...new Set(DATA.series.map((series) => series.workload))].filter((name) => name !== "");
const NIGHTLY = WORKLOADS.length ? DATA.series.filter((series) => series.workload !== "") : DATA.series;
const NEWEST = NIGHTLY.reduce((newest, series) => Math.max(newest, series.at.at(-1)), 0); // scores come when they like
const RANGES = { "30 nights": 30, "90 nights": 90, "a year": 366, all: Infinity };
const OLD_AFTER = 1.5 * DAY; // behind the newest measurement of the lab
const NEWS_DAYS = 14;
const FIRST_METRICS = ["decode_tokens_per_s", "ttft_s", "kl"];

const SERIES = new Map(DATA.series.map((series) => [keyOf(series.artifact, series.device, series.workload), series]));
const view = { metric: "", workload: "", range: "90 nights", a: "", b: "", device: "" };

function keyOf(artifact, device, workload) {
  return JSON.stringify([artifact, device, workload]);
}

// The series of an artifact on a device for the metric and the workload that are chosen.
function seriesOf(artifact, device, metric = view.metric) {
  return SERIES.get(keyOf(artifact, device, METRICS.get(metric).of_score ? "" : view.workload));
}

// The place of the newest valid measurement that has the metric; -1 where there is none.
function newestPlace(series, metric) {
  const values = series?.figures[metric]?.[0] ?? [];
  for (let place = values.length - 1; place >= 0; place--) {
    if (values[place] !== null && !(place in series.invalid)) return place;
  }
  return -1;
}

function firstInRange(series) {
  const first = series.at.findIndex((at) => at >= NEWEST - RANGES[view.range] * DAY);
  return first < 0 ? series.at.length : first;
}

// Is a new level better or worse than the one before? Its ratio is never 1.
function judged(ratio, metric) {
  return ratio < 1 === (METRICS.get(metric).better === "lower") ? "good" : "bad";
}

// What else is different since the measurement before: a new export, another version of something.
function differsAt(series, place) {
  if (place === 0) return [];
  const found = [];
  if (series.digest[place] !== series.digest[place - 1]) {
    found.push(`new export ${DATA.digests[series.digest[place]]}`);
  }
  const [before, after] = [place - 1, place].map((each) => DATA.versions[series.versions[each]].split(", "));
  found.push(...after.filter((version) => !before.includes(version)));
  return found;
}

// A level may seem to begin a night early or late: what is different then, and the night of that.
function causeOf(series, place) {
  const near = [place, place - 1, place + 1].filter((each) => each > 0 && each < series.at.length);
  const at = near.find((each) => differsAt(series, each).length) ?? place;
  return { at, why: `since ${day(series.at[at])}: ${differsAt(series, at).join(", ") || "same export, same versions"}` };
}

// What the address says; without it, the first piece of news.
function readView(news) {
  const given = new URLSearchParams(location.hash.slice(1));
  const pick = (key, known, otherwise) => (known.includes(given.get(key)) ? given.get(key) : otherwise);
  const names = [...METRICS.keys()];
  const { series, ratios = {} } = news[0] ?? { series: DATA.series[0] };
  const first = FIRST_METRICS.find((name) => name in ratios) ?? FIRST_METRICS.find((name) => METRICS.has(name)) ?? names[0];
  view.metric = pick("metric", names, first);
  view.workload = pick("workload", WORKLOADS, series.workload || (WORKLOADS[0] ?? ""));
  view.range = pick("range", Object.keys(RANGES), "90 nights");
  view.a = pick("a", ARTIFACTS, series.artifact);
  view.b = pick("b", ARTIFACTS, ARTIFACTS.find((name) => name !== view.a) ?? view.a);
  view.device = pick("device", DEVICES, series.device);
}

// A link to what is shown now can be copied from the address bar.
function keepView() {
  history.replaceState(null, "", `#${new URLSearchParams(view)}`);
}
