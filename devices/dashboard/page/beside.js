// Two artifacts on one device, metric by metric.

function showBeside() {
  const rows = [...METRICS.keys()].map((metric) => besideRow(metric)).filter((row) => row !== null);
  byId("figures").replaceChildren(
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Metric"),
      ...[["a", view.a], ["b", view.b]].map(([kind, artifact]) =>
        element("th", { scope: "col" }, element("span", { class: `chip ${kind}` }, kind.toUpperCase()), ` ${artifact}`)),
      element("th", { scope: "col" }, "B / A"))),
    element("tbody", {}, ...rows));
}

function besideRow(metric) {
  const [a, b] = [view.a, view.b].map((artifact) => newest(artifact, metric));
  if (a === null && b === null) return null;
  const ratio = a !== null && b !== null && a.value > 0 ? b.value / a.value : null;
  const apart = ratio !== null && a.low !== null && b.low !== null && (b.low > a.high || b.high < a.low);
  return element("tr", { class: metric === view.metric ? "chosen" : null },
    element("th", { scope: "row", title: METRICS.get(metric).definition }, METRICS.get(metric).label),
    ...[a, b].map((figure) => besideCell(figure, metric)),
    element("td", { class: apart ? judged(ratio, metric) : null }, ratio === null ? "" : `${digits(ratio)}x`));
}

function newest(artifact, metric) {
  const series = seriesOf(artifact, view.device, metric);
  const place = newestPlace(series, metric);
  if (place < 0) return null;
  const [value, low, high] = series.figures[metric].map((column) => column[place]);
  return { value, low, high, at: series.at[place] };
}

function besideCell(figure, metric) {
  if (figure === null) return element("td", { class: "faint" }, "not measured");
  const unit = METRICS.get(metric).unit;
  const [factor] = scaleOf(figure.value, unit);
  const interval = figure.low === null ? "" : `${digits(figure.low / factor)} to ${digits(figure.high / factor)}`;
  const old = figure.at < NEWEST - OLD_AFTER ? ` on ${day(figure.at)}` : "";
  return element("td", {}, shown(figure.value, unit), element("small", {}, interval + old));
}
