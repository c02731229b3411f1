// An artifact's files, from the browser's cache or from the server; none is used before its SHA-256 is the manifest's.

// {name: Uint8Array} of the named files, and the caches' entries of other versions removed. `onProgress` gets
// {file, loaded, total, cached} in bytes of all of them.
export async function loadFiles(base, manifest, names, onProgress = () => {}) {
  const store = await openStore(base, manifest);
  const total = names.reduce((sum, name) => sum + manifest.files[name].bytes, 0);
  const files = {};
  let loaded = 0;
  for (const name of names) {
    const report = (bytes, cached) => onProgress({ file: name, loaded: loaded + bytes, total, cached });
    files[name] = await loadFile(base, name, manifest.files[name], store, report);
    loaded += manifest.files[name].bytes;
  }
  return files;
}

// The folders of the models that a bundle has.
export async function loadModels(base) {
  return (await loadJson(new URL("models.json", base))).map((folder) => new URL(folder, base));
}

export function loadManifest(base) {
  return loadJson(new URL("manifest.json", base));
}

async function loadJson(url) {
  const response = await fetch(url, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  return response.json();
}

// Remove what the browser keeps of a folder.
export async function dropFiles(base) {
  await globalThis.caches?.delete(storeName(base)).catch(() => {}); // a private window has none
}

async function loadFile(base, name, file, store, report) {
  const key = keyOf(base, file);
  const kept = await store?.match(key);
  if (kept) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if (await isFile(bytes, file)) {
      report(file.bytes, true);
      return bytes;
    }
    await store.delete(key);
  }
  const bytes = await download(new URL(name, base), file, report);
  if (!await isFile(bytes, file)) {
    throw new Error(`${name} is not the file of the manifest (its SHA-256 differs); copy the folder to the server again`);
  }
  try {
    await store?.put(key, new Response(bytes));
  } catch (error) { // no room: it works without, and downloads again the next time
    console.warn(`phi-edge: ${name} is not kept: ${error.message}`);
  }
  return bytes;
}

async function download(url, file, report) {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  const bytes = new Uint8Array(file.bytes);
  let loaded = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (loaded + value.length > bytes.length) throw new Error(`${url} is longer than the manifest says`);
    bytes.set(value, loaded);
    report(loaded += value.length, false);
  }
  if (loaded < bytes.length) throw new Error(`${url} ended after ${loaded} of ${bytes.length} bytes`);
  return bytes;
}

async function isFile(bytes, file) {
  if (bytes.length !== file.bytes) return false;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === file.sha256;
}

// The cache of this folder's files, by hash; null where the browser allows none (a private window). What the manifest
// does not name is of an older version.
async function openStore(base, manifest) {
  let store;
  try {
    store = await caches.open(storeName(base));
  } catch {
    return null;
  }
  const wanted = new Set(Object.values(manifest.files).map((file) => keyOf(base, file)));
  for (const request of await store.keys()) if (!wanted.has(request.url)) await store.delete(request);
  return store;
}

function storeName(base) {
  return `phi-edge ${new URL(base).pathname}`;
}

function keyOf(base, file) {
  return new URL(`sha256/${file.sha256}`, base).href;
}
