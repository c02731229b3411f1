// Numbers and times as people read them: three digits, as the report's.

const SCALES = {
  s: [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]],
  share: [[0.01, "%"]],
  J: [[1, "J"], [1e-3, "mJ"]],
  bytes: [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
};

function scaleOf(value, unit) {
  const scales = SCALES[unit] ?? [[1, unit]];
  return scales.find(([factor]) => Math.abs(value) >= factor) ?? scales.at(-1);
}

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 99.95) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3);
}

function shown(value, unit) {
  const [factor, name] = scaleOf(value, unit);
  return `${digits(value / factor)} ${name}`.trim();
}

function percent(ratio) {
  const change = Math.abs(ratio - 1) * 100;
  return `${ratio < 1 ? "−" : "+"}${change.toFixed(change < 9.95 ? 1 : 0)}\u00a0%`;
}

const DAY = 86400;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

function day(seconds) {
  const date = new Date(seconds * 1000);
  return `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`;
}

function dayAndYear(seconds) {
  return `${day(seconds)} ${new Date(seconds * 1000).getUTCFullYear()}`;
}

function plural(number, word) {
  return `${number.toLocaleString("en-US")} ${word}${number === 1 ? "" : "s"}`;
}

// Round values between low and high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high; number++) found.push(number * step);
  return found;
}
