// The controls, and what they show.

function show() {
  keepView();
  const metric = METRICS.get(view.metric);
  options(byId("metric"), [...METRICS.keys()], view.metric, (name) => METRICS.get(name).label);
  options(byId("workload"), WORKLOADS, view.workload);
  byId("workload-label").hidden = WORKLOADS.length < 2;
  options(byId("artifact-a"), ARTIFACTS, view.a);
  options(byId("artifact-b"), ARTIFACTS, view.b);
  options(byId("device"), DEVICES, view.device);
  byId("definition").textContent = `${metric.definition} ${metric.better === "lower" ? "Lower" : "Higher"} is better.`;
  byId("range").replaceChildren(...Object.keys(RANGES).map((range) =>
    element("button", { type: "button", "aria-pressed": String(range === view.range), onclick: () => { view.range = range; show(); } }, range)));
  showPivot();
  showTime();
  showHeat();
  showBeside();
}

function summarize() {
  const first = NIGHTLY.reduce((oldest, series) => Math.min(oldest, series.at[0]), NEWEST);
  byId("summary").textContent = `${plural(ARTIFACTS.length, "artifact")}, ${plural(DEVICES.length, "device")}: ` +
    `${plural(DATA.measurements, "measurement")} of ${plural(DATA.repetitions, "repetition")}, ` +
    `${dayAndYear(first)} to ${dayAndYear(NEWEST)}`;
}

function begin() {
  summarize();
  if (!DATA.series.length) return;
  const news = findNews();
  readView(news);
  for (const [id, key] of [["metric", "metric"], ["workload", "workload"], ["artifact-a", "a"], ["artifact-b", "b"], ["device", "device"]]) {
    byId(id).addEventListener("change", (event) => { view[key] = event.target.value; show(); });
  }
  showNews(news);
  show();
  window.addEventListener("resize", () => { showTime(); showHeat(); });
  window.addEventListener("hashchange", () => { readView(news); show(); });
}

begin();
