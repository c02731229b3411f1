// The table of artifacts by devices.

function showPivot() {
  const devices = DEVICES.filter((device) => ARTIFACTS.some((name) => seriesOf(name, device)?.figures[view.metric]));
  const best = new Map(devices.map((device) => [device, bestOn(device)]));
  const head = devices.map((device) => element("th", { scope: "col", title: device }, device,
    element("small", {}, DATA.devices[device])));
  const rows = ARTIFACTS.map((artifact) =>
    element("tr", {},
      element("th", { scope: "row", title: artifact }, artifact, element("small", {}, DATA.artifacts[artifact])),
      ...devices.map((device) => element("td", {}, pivotCell(artifact, device, best.get(device))))));
  byId("pivot").style.setProperty("--columns", devices.length);
  byId("pivot").replaceChildren(
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, METRICS.get(view.metric).label), ...head)),
    element("tbody", {}, ...rows));
}

// The artifact with the best newest value on a device, where there is something to compare.
function bestOn(device) {
  const known = ARTIFACTS.map((artifact) => [artifact, seriesOf(artifact, device)])
    .map(([artifact, series]) => [artifact, series?.figures[view.metric]?.[0][newestPlace(series, view.metric)]])
    .filter(([, value]) => value !== undefined);
  const sign = METRICS.get(view.metric).better === "lower" ? 1 : -1;
  known.sort(([, one], [, other]) => sign * (one - other));
  return known.length > 1 && known[0][1] !== known[1][1] ? known[0][0] : null;
}

function pivotCell(artifact, device, best) {
  const series = seriesOf(artifact, device);
  if (!series?.figures[view.metric]) return element("span", { class: "absent" }, "not measured");
  const place = newestPlace(series, view.metric);
  const said = saidOf(series, place);
  const chosen = device !== view.device ? "" : artifact === view.a ? "chosen-a" : artifact === view.b ? "chosen-b" : "";
  const [value, unit] = place < 0 ? ["invalid", ""] : parts(series.figures[view.metric][0][place]);
  return element("button", {
    type: "button",
    class: `cell ${chosen} ${said.old ? "old" : ""} ${said.invalid ? "invalid" : ""}`,
    title: said.title,
    "aria-label": `${artifact} on ${device}: ${value} ${unit}, ${said.text}`,
    onclick: (event) => chooseCell(artifact, device, event.shiftKey),
  },
  element("span", { class: "value" }, artifact === best ? element("span", { class: "best", title: "best of its device" }, "✓") : null,
    `${value} `, element("small", {}, unit)),
  sparkline(series),
  element("span", { class: `said ${said.judged}` }, said.text));
}

function parts(value) {
  const text = shown(value, METRICS.get(view.metric).unit);
  const space = text.indexOf(" ");
  return space < 0 ? [text, ""] : [text.slice(0, space), text.slice(space + 1)];
}

// The line below the sparkline: what a reader must know first.
function saidOf(series, place) {
  const last = series.at.length - 1;
  const change = (series.changes[view.metric] ?? []).findLast((each) => each.at >= firstInRange(series));
  const old = series.at[last] < NEWEST - OLD_AFTER;
  const said = { judged: "", old, invalid: last in series.invalid, title: null, text: "" };
  if (said.invalid) {
    return { ...said, judged: "bad", text: `invalid on ${day(series.at[last])}`, title: series.invalid[last].join("\n") };
  }
  if (old) return { ...said, text: `last on ${day(series.at[last])}` };
  if (change) {
    const { at, why } = causeOf(series, change.at);
    const text = `${percent(change.ratio)} since ${day(series.at[at])}`;
    return { ...said, judged: judged(change.ratio, view.metric), text, title: why };
  }
  if (last in series.doubtful) return { ...said, text: "doubtful", title: series.doubtful[last].join("\n") };
  return { ...said, text: `steady, ${plural(last + 1 - firstInRange(series), "night")}` };
}

function sparkline(series) {
  const width = 118, height = 22, first = firstInRange(series);
  const [values] = series.figures[view.metric];
  const known = [];
  for (let place = first; place < values.length; place++) {
    if (values[place] !== null && !(place in series.invalid)) known.push(place);
  }
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (known.length < 2) return svg;
  // Noise of 1 % is not blown up to the height of the cell.
  const own = known.map((place) => values[place]);
  const low = own.reduce((one, other) => Math.min(one, other)), high = own.reduce((one, other) => Math.max(one, other));
  const span = Math.max(high - low, 0.06 * Math.abs(high)) || 1, middle = (low + high) / 2;
  const from = series.at[first], until = Math.max(NEWEST, from + 1);
  const x = (place) => 2 + ((series.at[place] - from) / (until - from)) * (width - 4);
  const y = (value) => height / 2 - ((value - middle) / span) * (height - 4);
  const path = known.map((place, number) => `${number ? "L" : "M"}${x(place).toFixed(1)} ${y(values[place]).toFixed(1)}`);
  for (const change of series.changes[view.metric] ?? []) {
    if (change.at >= first) {
      svg.append(drawing("line", { class: `spark-mark ${judged(change.ratio, view.metric)}`, x1: x(change.at),
        x2: x(change.at), y1: 0, y2: height, "vector-effect": "non-scaling-stroke" }));
    }
  }
  svg.append(drawing("path", { class: "spark", d: path.join(""), "vector-effect": "non-scaling-stroke" }));
  return svg;
}

function chooseCell(artifact, device, asB) {
  if (asB) Object.assign(view, { b: artifact, device });
  else Object.assign(view, { a: artifact, device, b: artifact === view.b ? view.a : view.b });
  show();
}
