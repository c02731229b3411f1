// Lines over time: a metric over the nights, and the heat of one measurement.

const MARGIN = { left: 58, right: 20, top: 34, bottom: 26 };

// The frame of a chart: scales, grid and labels. Boxes are in pixels, so that text keeps its size.
function frame(holder, height, xs, ys, labels) {
  const width = Math.max(260, holder.clientWidth || 600);
  const x = (value) => MARGIN.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - ys[0]) / (ys[1] - ys[0] || 1)) * (height - MARGIN.top - MARGIN.bottom);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": labels.title });
  for (const tick of ticks(...ys, 5)) {
    svg.append(drawing("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      drawing("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, labels.y(tick)));
  }
  for (const tick of labels.xTicks) {
    svg.append(drawing("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, labels.x(tick)));
  }
  svg.append(drawing("text", { x: 2, y: 12 }, labels.unit));
  return { svg, x, y, width, height };
}

function extent(values, pad) {
  const low = values.reduce((one, other) => Math.min(one, other)), high = values.reduce((one, other) => Math.max(one, other));
  const space = (high - low) * pad || Math.abs(high) * 0.05 || 1;
  return [low - space, high + space];
}

function dayTicks(from, until, most) {
  const steps = [1, 2, 7, 14, 30, 61, 122, 365, 730];
  const step = DAY * (steps.find((days) => (until - from) / (days * DAY) <= most) ?? 1461);
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= until; at += step) found.push(at);
  return found.length ? found : [from];
}

function showTime() {
  const metric = METRICS.get(view.metric);
  const lines = [["a", view.a], ["b", view.b]]
    .filter(([, artifact], number) => number === 0 || artifact !== view.a)
    .map(([kind, artifact]) => ({ kind, artifact, series: seriesOf(artifact, view.device) }))
    .filter(({ series }) => series?.figures[view.metric] && firstInRange(series) < series.at.length);
  byId("time-title").textContent = `${metric.label} on ${view.device}`;
  if (!lines.length) return byId("time").replaceChildren(element("p", { class: "note" }, "Not measured."));
  const figures = lines.flatMap(({ series }) =>
    series.figures[view.metric].flatMap((column) => column.slice(firstInRange(series))).filter((value) => value !== null));
  if (!figures.length) return byId("time").replaceChildren(element("p", { class: "note" }, "Not measured in this range."));
  const [factor, unit] = scaleOf(Math.max(...extent(figures, 0)), metric.unit);
  const from = Math.min(...lines.map(({ series }) => series.at[firstInRange(series)]));
  const until = Math.max(...lines.map(({ series }) => series.at.at(-1)), from + DAY);
  const width = byId("time").clientWidth || 900;
  const chart = frame(byId("time"), 300, [from - DAY / 2, until + DAY / 2], extent(figures, 0.08), {
    title: byId("time-title").textContent, unit, y: (value) => digits(value / factor), x: day,
    xTicks: dayTicks(from, until, width / 80),
  });
  for (const line of lines) chart.svg.append(timeLine(chart, line));
  follow(chart, lines);
  byId("time").replaceChildren(chart.svg);
}

function timeLine(chart, { kind, series }) {
  const { x, y } = chart;
  const group = drawing("g", { class: kind });
  const [values, lows, highs] = series.figures[view.metric];
  const first = firstInRange(series);
  const valid = [];
  for (let place = first; place < values.length; place++) {
    if (values[place] !== null && !(place in series.invalid)) valid.push(place);
  }
  const withInterval = valid.filter((place) => lows[place] !== null && highs[place] !== null);
  const along = (places, column) => places.map((place) => `${x(series.at[place]).toFixed(1)} ${y(column[place]).toFixed(1)}`);
  if (withInterval.length > 1) {
    const outline = [...along(withInterval, highs), ...along(withInterval, lows).reverse()];
    group.append(drawing("path", { class: "band", d: `M${outline.join("L")}Z` }));
  }
  if (valid.length > 1) group.append(drawing("path", { class: "path", d: `M${along(valid, values).join("L")}` }));
  levels(chart, group, kind, series, first);
  const radius = valid.length > 150 ? 1.6 : 2.6;
  for (const place of valid) {
    group.append(drawing("circle", { class: "dot", cx: x(series.at[place]), cy: y(values[place]), r: radius }));
  }
  for (let place = first; place < values.length; place++) {
    const at = x(series.at[place]);
    if (place in series.invalid && values[place] !== null) {
      const middle = y(values[place]);
      group.append(drawing("path", { class: "cross", d: `M${at - 4} ${middle - 4}l8 8m0 -8l-8 8` }));
    }
    if (place > first && series.digest[place] !== series.digest[place - 1]) {
      const foot = chart.height - MARGIN.bottom;
      group.append(drawing("path", { class: "export", d: `M${at} ${foot - 8}l4 4l-4 4l-4 -4Z` }));
    }
  }
  return group;
}

// A thick line for each level, and a dashed one with the change where the next begins.
function levels({ svg, x, y, height }, group, kind, series, first) {
  const changes = series.changes[view.metric] ?? [];
  changes.forEach((change, number) => {
    const end = changes[number + 1]?.at ?? series.at.length - 1;
    if (end < first) return;
    const start = Math.max(change.at, first);
    group.append(drawing("line", { class: "level", x1: x(series.at[start]), x2: x(series.at[end]), y1: y(change.after), y2: y(change.after) }));
    const before = change.after / change.ratio;
    const begins = Math.max(changes[number - 1]?.at ?? 0, first);
    if (change.at < first) return;
    if (number === 0 || changes[number - 1].at < first) {
      group.append(drawing("line", { class: "level", x1: x(series.at[begins]), x2: x(series.at[change.at]), y1: y(before), y2: y(before) }));
    }
    const at = x(series.at[change.at]);
    svg.append(drawing("line", { class: "change", x1: at, x2: at, y1: MARGIN.top - 2, y2: height - MARGIN.bottom }),
      drawing("text", { class: judged(change.ratio, view.metric), x: at, y: kind === "a" ? 14 : 29, "text-anchor": "middle" }, percent(change.ratio)));
  });
}

// A ring around the measurement that is nearest to the pointer, and what is known of it.
function follow({ svg, x, y }, lines) {
  const ring = drawing("circle", { class: "cursor", r: 6, visibility: "hidden" });
  svg.append(ring);
  svg.addEventListener("pointerleave", () => { hideTip(); ring.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    for (const { artifact, series } of lines) {
      const [values] = series.figures[view.metric];
      for (let place = firstInRange(series); place < values.length; place++) {
        if (values[place] === null) continue;
        const [cx, cy] = [x(series.at[place]), y(values[place])];
        const distance = Math.hypot(cx - left, (cy - top) / 3);
        if (best === null || distance < best.distance) best = { distance, cx, cy, artifact, series, place };
      }
    }
    for (const [key, value] of Object.entries({ cx: best.cx, cy: best.cy, visibility: "visible" })) ring.setAttribute(key, value);
    showTip(event, described(best));
  });
}

function described({ artifact, series, place }) {
  const unit = METRICS.get(view.metric).unit;
  const [value, low, high] = series.figures[view.metric].map((column) => column[place]);
  const [factor] = scaleOf(value, unit);
  const interval = low === null ? "" : ` (${digits(low / factor)} to ${digits(high / factor)})`;
  return [`${artifact}, ${dayAndYear(series.at[place])}`, `${shown(value, unit)}${interval}`,
    ...(series.invalid[place] ?? []).map((text) => `invalid: ${text}`),
    ...(series.doubtful[place] ?? []).map((text) => `doubtful: ${text}`),
    `export ${DATA.digests[series.digest[place]]}`, DATA.versions[series.versions[place]]].join("\n");
}

function showHeat() {
  const lines = [["a", view.a], ["b", view.b]]
    .filter(([, artifact], number) => number === 0 || artifact !== view.a)
    .map(([kind, artifact]) => ({ kind, series: SERIES.get(keyOf(artifact, view.device, view.workload)) }))
    .filter(({ series }) => series?.moments.length);
  const charts = [[1, "°C", 1], [2, "GHz", 1e9]].map(([column, unit, factor]) => heatChart(lines, column, unit, factor));
  const made = charts.filter((chart) => chart !== null);
  byId("heat").replaceChildren(...(made.length ? made : [element("p", { class: "note" }, "The device reports no temperature.")]));
}

function heatChart(lines, column, unit, factor) {
  const known = lines.map(({ kind, series }) => ({
    kind, points: series.moments.filter((moment) => moment[column] !== null).map((moment) => [moment[0] / 60, moment[column] / factor]),
  })).filter(({ points }) => points.length > 1);
  if (!known.length) return null;
  const all = known.flatMap(({ points }) => points);
  const last = all.reduce((most, [minutes]) => Math.max(most, minutes), 0);
  const { svg, x, y } = frame(byId("heat"), 148, [0, last || 1], extent(all.map(([, value]) => value), 0.15), {
    title: `${unit} over minutes`, unit: `${unit}, by minutes`, y: (value) => `${+value.toPrecision(3)}`,
    x: (value) => `${+value.toPrecision(3)}`, xTicks: ticks(0, last || 1, 5),
  });
  for (const { kind, points } of known) {
    const path = points.map(([minutes, value]) => `${x(minutes).toFixed(1)} ${y(value).toFixed(1)}`);
    svg.append(drawing("g", { class: kind }, drawing("path", { class: "trace", d: `M${path.join("L")}` }),
      ...points.map(([minutes, value]) => drawing("circle", { class: "dot", cx: x(minutes), cy: y(value), r: 2.5 }))));
  }
  return svg;
}
