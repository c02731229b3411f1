// What is new: levels that changed in the last two weeks, and what was invalid or not measured last night.
// What has one cause is one piece of news: a new export on ten devices, a new engine under six artifacts.

const MOST_NEWS = 9;
const RANK = { worse: 0, missing: 1, better: 2 };

function findNews() {
  const groups = new Map();
  for (const fact of DATA.series.flatMap((series) => [...changed(series), ...missing(series)])) {
    const key = JSON.stringify([fact.kind, fact.why, fact.known ? "" : fact.series.device]);
    groups.set(key, [...(groups.get(key) ?? []), fact]);
  }
  const news = [...groups.values()].map((facts) => ({ ...facts[0], facts, size: Math.max(...facts.map((fact) => fact.size)) }));
  return news.sort((one, other) => RANK[one.kind] - RANK[other.kind] || other.size - one.size);
}

// Metrics of one series that change within a night of one another are one fact.
function changed(series) {
  const found = [];
  for (const metric of METRICS.keys()) {
    for (const change of series.changes[metric] ?? []) {
      if (series.at[change.at] < NEWEST - NEWS_DAYS * DAY) continue;
      const kind = judged(change.ratio, metric) === "bad" ? "worse" : "better";
      let fact = found.find((each) => each.kind === kind && Math.abs(each.place - change.at) <= 1);
      if (!fact) {
        fact = { kind, series, metric, place: change.at, size: 0, ratios: {} };
        found.push(fact);
      }
      fact.ratios[metric] = change.ratio;
      const size = Math.abs(Math.log(change.ratio));
      if (size > fact.size) Object.assign(fact, { size, place: change.at });
    }
  }
  return found.map((fact) => {
    const { at, why } = causeOf(series, fact.place);
    return { ...fact, why, known: differsAt(series, at).length > 0 };
  });
}

function missing(series) {
  const last = series.at.length - 1;
  const fact = { kind: "missing", series, metric: null, size: 0, known: false };
  if (last in series.invalid) {
    return [{ ...fact, what: `invalid on ${day(series.at[last])}`, why: series.invalid[last][0] }];
  }
  const days = Math.round((NEWEST - series.at[last]) / DAY);
  if (series.workload === "" || series.at[last] >= NEWEST - OLD_AFTER || days > NEWS_DAYS) return [];
  return [{ ...fact, what: `not measured for ${plural(days, "day")}`, why: `the last time on ${day(series.at[last])}` }];
}

function namesOf(facts) {
  const artifacts = [...new Set(facts.map(({ series }) => series.artifact))];
  const devices = [...new Set(facts.map(({ series }) => series.device))];
  const some = (names, word) => (names.length < 3 ? names.join(" and ") : plural(names.length, word));
  return `${some(artifacts, "artifact")} on ${some(devices, "device")}`;
}

// `Decode −6.6 % to −9.2 %, ...`: the three metrics that most of the facts have.
function ratiosOf(facts) {
  const counts = new Map();
  for (const fact of facts) {
    for (const [metric, ratio] of Object.entries(fact.ratios)) counts.set(metric, [...(counts.get(metric) ?? []), ratio]);
  }
  const first = [...counts].sort(([, one], [, other]) => other.length - one.length);
  const texts = first.slice(0, 3).map(([metric, ratios]) => {
    ratios.sort((one, other) => Math.abs(Math.log(one)) - Math.abs(Math.log(other)));
    const [least, most] = [ratios[0], ratios.at(-1)].map(percent);
    return `${METRICS.get(metric).label} ${least === most ? most : `${least} to ${most}`}`;
  });
  const rest = first.length - texts.length;
  return texts.join(", ") + (rest ? `, and ${plural(rest, "other metric")}` : "");
}

function showNews(news) {
  const items = news.slice(0, MOST_NEWS).map((item) =>
    element("li", { class: item.kind },
      element("button", { type: "button", onclick: () => choose(item) },
        element("strong", {}, namesOf(item.facts)), `: ${item.what ?? ratiosOf(item.facts)}`,
        element("small", { title: item.why }, item.why))));
  if (news.length > MOST_NEWS) {
    items.push(element("li", { class: "note" }, `and ${news.length - MOST_NEWS} more, marked in the table below`));
  }
  if (!items.length) {
    items.push(element("li", { class: "note" }, `Nothing: no level changed in ${NEWS_DAYS} days, and all was measured.`));
  }
  byId("news").replaceChildren(...items);
}

function choose(item) {
  Object.assign(view, { a: item.series.artifact, device: item.series.device });
  if (item.series.workload !== "") view.workload = item.series.workload;
  if (item.metric !== null && !(view.metric in item.ratios)) view.metric = item.metric;
  if (view.b === view.a) view.b = ARTIFACTS.find((name) => name !== view.a) ?? view.a;
  show();
  byId("beside-title").scrollIntoView({ block: "start", behavior: "smooth" });
}
