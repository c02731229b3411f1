// Which graphics adapter computes, and which of the models it can run, decided before anything is downloaded.
const WIDTH = { float32: 4, float16: 2 };

// `models` are {base, manifest}: one model, or the same in two float types. float16 is taken where the adapter has it.
// -> the model's {base, manifest}, and the adapter.
export async function chooseModel(models) {
  if (!globalThis.navigator?.gpu) {
    throw new Error("this browser has no WebGPU here; use a newer one, over https or from localhost");
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("this browser offers no graphics adapter for WebGPU; look at chrome://gpu");
  const of = (type) => models.find(({ manifest }) => floatType(manifest) === type);
  const lacking = lacksFloat16(adapter);
  const chosen = (lacking === null && of("float16")) || of("float32");
  if (!chosen) throw new Error(lacking);
  checkCache(chosen.manifest, adapter);
  return { ...chosen, adapter };
}

// Why a float16 model cannot run; null where it can.
function lacksFloat16(adapter) {
  if (!adapter.features.has("shader-f16")) {
    return `${adapterName(adapter)} has no float16 (shader-f16), which this model needs; export it with ` +
      "--activations float32 (phi-edge bundle --also takes both)";
  }
  return globalThis.Float16Array ? null : "this browser has no numbers of 16 bits (Float16Array); use a newer one";
}

function checkCache(manifest, adapter) {
  const bytes = cacheBytes(manifest), most = adapter.limits.maxStorageBufferBindingSize;
  if (bytes > most) {
    throw new Error(
      `a layer's keys for ${manifest.context_tokens} tokens have ${bytes} bytes, and ${adapterName(adapter)} takes ` +
      `${most} in a buffer; export with a shorter --context`,
    );
  }
}

// The adapter for people: vendor, architecture, and whether it is software.
export function adapterName(adapter) {
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const words = [description || [vendor, architecture].filter(Boolean).join(" ") || "the adapter"];
  return words.concat(isFallbackAdapter ? ["(software)"] : []).join(" ");
}

// The type of the graph's numbers and of its KV cache.
export function floatType(manifest) {
  return manifest.scheme.activations.startsWith("float16") ? "float16" : "float32";
}

// Of the keys, or of the values, of one layer.
export function cacheBytes(manifest) {
  const { kv_heads, head_dim } = manifest.model;
  return kv_heads * manifest.context_tokens * head_dim * WIDTH[floatType(manifest)];
}
