// From logits to the next token's id, as runtimes/loop/sampling.py and penalties.py do it: the same draws of SplitMix64.

const MASK = (1n << 64n) - 1n;

// The id of token number `index` (0 is the first new one). Ties go to the lower id. An error where the logits are no
// numbers.
export function sample(logits, sampling, index) {
  const best = argmax(logits);
  if (!Number.isFinite(logits[best]) || logits.some(Number.isNaN)) {
    throw new Error("the model's logits are no numbers: the artifact or the engine is broken");
  }
  if (sampling.temperature === 0) return best;
  const { ids, weights } = candidates(logits, sampling);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const wanted = draw(sampling.seed, index) * total;
  let sum = 0;
  for (let place = 0; place < ids.length; place++) {
    sum += weights[place];
    if (sum > wanted) return ids[place];
  }
  return ids[ids.length - 1];
}

// Number `index` of the seed's stream, uniform in [0, 1). The seed is a BigInt of 64 bits.
export function draw(seed, index) {
  let z = (seed + BigInt(index + 1) * 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
}

// The logits after the penalties; the same array where there is nothing to change. `seen` are the ids of the prompt and
// the answer, `counts` how often each is in the answer.
export function penalised(logits, sampling, seen, counts) {
  const { repetition_penalty, presence_penalty, frequency_penalty } = sampling;
  const counted = (presence_penalty !== 0 || frequency_penalty !== 0) && counts.size > 0;
  if (repetition_penalty === 1 && !counted) return logits;
  const changed = Float32Array.from(logits);
  if (repetition_penalty !== 1) {
    for (const id of seen) changed[id] = changed[id] > 0 ? changed[id] / repetition_penalty : changed[id] * repetition_penalty;
  }
  if (counted) {
    for (const [id, times] of counts) changed[id] -= presence_penalty + frequency_penalty * times;
  }
  return changed;
}

// The ids that may be drawn, best first where that matters, and their weights: temperature, then top-k, then top-p, which
// keeps the token that crosses it; then min-p.
function candidates(logits, { temperature, top_k, top_p, min_p }) {
  const highest = logits[argmax(logits)];
  let ids = Array.from(logits.keys());
  if (top_k !== null || top_p !== null) {
    ids.sort((one, other) => logits[other] - logits[one] || one - other);
    if (top_k !== null) ids = ids.slice(0, top_k);
  }
  let weights = ids.map((id) => Math.exp((logits[id] - highest) / temperature));
  if (top_p !== null) {
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    let before = 0, kept = 0;
    while (kept < ids.length && (kept === 0 || before < top_p * total)) before += weights[kept++];
    ids = ids.slice(0, kept);
    weights = weights.slice(0, kept);
  }
  if (min_p !== null) {
    const least = min_p * weights.reduce((most, weight) => Math.max(most, weight), 0);
    const kept = weights.map((weight) => weight >= least);
    ids = ids.filter((_, place) => kept[place]);
    weights = weights.filter((_, place) => kept[place]);
  }
  return { ids, weights };
}

function argmax(logits) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  return best;
}
