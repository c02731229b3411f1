// One session of the real Windows onnxruntime, driven by a JSON file: session.js JOB RESULT
// Job: model, provider ("cpu" or "dml"), strict (forbid the CPU fallback), feeds (a list of {name: {type, shape, data}}).
// Outputs named present.* go into the next feed as past_key_values.*. Wine has no console: the result is a file.
const fs = require('fs');
const [jobFile, resultFile] = process.argv.slice(2);
const job = JSON.parse(fs.readFileSync(jobFile));
const finish = (result) => {
  fs.writeFileSync(resultFile, JSON.stringify({ platform: process.platform, ...result }));
  process.exit(0);
};
const ARRAYS = {
  int64: (data) => BigInt64Array.from(data, BigInt),
  int32: (data) => Int32Array.from(data),
  float32: (data) => Float32Array.from(data),
};

(async () => {
  const ort = require('onnxruntime-node');
  ort.env.logLevel = 'verbose'; // node placements are in the log
  const options = { executionProviders: [job.provider], logSeverityLevel: 0 };
  if (job.strict) options.extra = { session: { disable_cpu_ep_fallback: '1' } };
  const session = await ort.InferenceSession.create(job.model, options);
  const logits = [];
  let cache = {};
  for (const feed of job.feeds) {
    const inputs = { ...cache };
    for (const [name, { type, shape, data }] of Object.entries(feed)) {
      const count = shape.reduce((a, b) => a * b, 1);
      inputs[name] = new ort.Tensor(type, data ? ARRAYS[type](data) : new Float32Array(count), shape);
    }
    const outputs = await session.run(inputs);
    logits.push(Array.from(outputs.logits.data));
    cache = {};
    for (const [name, value] of Object.entries(outputs)) {
      if (name.startsWith('present.')) cache[name.replace('present', 'past_key_values')] = value;
    }
  }
  finish({ ok: true, logits });
})().catch((error) => finish({ ok: false, error: String(error) }));
