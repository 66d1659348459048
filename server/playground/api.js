// Client of the server's public HTTP API. The API key is in session storage and nowhere else.

const ROOT = new URL("../", import.meta.url);
const NATIVE = "api/native/v1";
const KEY = "lipsync.key";
const FINAL = ["succeeded", "failed", "cancelled"];

/** An error response; `status` 0: no response. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const session = {
  me: null,
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  },
  set key(text) {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  },
  hasScope(scope) {
    return this.me?.scopes.includes(scope) ?? false;
  },
  /** Called when the server rejects the key. */
  onUnauthorized: () => {},
};

/** Return whether a job has ended. */
export const isFinal = (state) => FINAL.includes(state);

/** Return a link of the server with the host of this page: the server may have several names. */
export function toPageUrl(link) {
  const { pathname, search } = new URL(link, ROOT);
  return new URL(pathname + search, ROOT.origin).href;
}

/** Return whether a link leads to a file of this server. */
export function isServerFile(link) {
  return Boolean(link) && new URL(link, ROOT).pathname.includes("/files/");
}

/** Return the base URL of the API. */
export const baseUrl = () => ROOT.href.replace(/\/$/, "");

async function sendRequest(method, path, { body, headers = {}, signal } = {}) {
  const allHeaders = { ...headers, Authorization: `Bearer ${session.key}` };
  if (body !== undefined) allHeaders["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { method, headers: allHeaders, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "");
  }
  if (response.ok) return response;
  const details = await response.json().catch(() => ({}));
  const error = new ApiError(response.status, details.error_code ?? details.error ?? "", details.message ?? details.error ?? `HTTP ${response.status}`);
  if (response.status === 401) session.onUnauthorized(error);
  throw error;
}

async function requestJson(method, path, options) {
  const response = await sendRequest(method, path, options);
  return response.status === 204 ? null : response.json();
}

export const getCaller = () => requestJson("GET", `${NATIVE}/me`);
export const getHealth = () => requestJson("GET", `${NATIVE}/health`);
export const getJob = (id, options) => requestJson("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}`, options);
export const getCredentials = (id) => requestJson("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}/credentials`);
export const cancelJob = (id) => requestJson("POST", `api/v3/predictions/${encodeURIComponent(id)}/cancel`);
export const deleteJob = (id) => requestJson("DELETE", `api/v3/predictions/${encodeURIComponent(id)}`);
export const listModels = async () => (await requestJson("GET", "api/v3/models")).data;
export const listWorkers = () => requestJson("GET", "admin/workers");
export const listKeys = () => requestJson("GET", "admin/keys");
export const revokeKey = (id) => requestJson("DELETE", `admin/keys/${encodeURIComponent(id)}`);

export function listJobs({ states = [], text = "", since = null, tenant = null, offset = 0, limit = 25 }, options) {
  const query = new URLSearchParams({ offset, limit });
  for (const state of states) query.append("state", state);
  if (text) query.set("text", text);
  if (since) query.set("since", since);
  if (tenant) query.set("tenant", tenant);
  return requestJson("GET", `${NATIVE}/jobs?${query}`, options);
}

export function createKey({ name, tenant, scopes }) {
  return requestJson("POST", "admin/keys", { body: { name, tenant, scopes } });
}

/** Submit a job and return its id. A repeated call with the same token returns the same job. */
export async function submitJob(path, body, token) {
  const answer = await requestJson("POST", path.replace(/^\//, ""), { body, headers: { "Idempotency-Key": token } });
  return (answer.data?.id ?? answer.id).replaceAll("-", "");
}

/** Return a random token; `crypto.randomUUID` exists on https only. */
export function createToken() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Upload a file and return its link.
 * @param {File} file
 * @param {(sent: number) => void} onProgress bytes sent so far
 * @param {AbortSignal} signal
 */
export async function uploadFile(file, onProgress, signal) {
  const body = { filename: file.name, size: file.size, content_type: file.type.split(";")[0] || undefined };
  const { data } = await requestJson("POST", "api/v3/media/uploads", { body, signal });
  await new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch reports no upload progress
    request.open("PUT", toPageUrl(data.upload.url));
    for (const [name, value] of Object.entries(data.upload.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () => (request.status === 200 ? resolve() : reject(new ApiError(request.status, "", messageOf(request))));
    request.onerror = () => reject(new ApiError(0, "unreachable", ""));
    request.onabort = () => reject(new DOMException("upload stopped", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
  return data.download_url;
}

function messageOf(request) {
  try {
    return JSON.parse(request.responseText).message;
  } catch {
    return request.responseText.slice(0, 200);
  }
}

// --- events of a job ---

const POLL_MS = 1500;
const MAX_RETRY_DELAY_MS = 5000;
const FIRST_RETRY_DELAY_MS = 250;
const FAILURES_BEFORE_POLLING = 3;

/**
 * Follow a job until it ends: by server-sent events, or by polling where no stream gets through. A lost
 * connection is opened again; each segment is reported once.
 *
 * @param {{onJob, onSegment, onGone, onLink: (state: "open"|"lost") => void}} listener
 * @returns {() => void} stops following
 */
export function followJob(id, listener) {
  const stop = new AbortController();
  const state = { lastSegment: -1, failures: 0, hasStreamed: false };
  const handlers = {
    job(data) {
      listener.onJob(data);
      if (isFinal(data.state)) stop.abort();
    },
    segment(data) {
      if (data.index <= state.lastSegment) return;
      state.lastSegment = data.index;
      listener.onSegment(data);
    },
    gone() {
      stop.abort();
      listener.onGone();
    },
  };
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const usePolling = !state.hasStreamed && state.failures >= FAILURES_BEFORE_POLLING;
        await (usePolling ? pollJob(id, handlers, stop.signal, listener) : streamJob(id, handlers, state, stop.signal, listener));
        state.failures = 0;
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error.status === 404) return handlers.gone();
        if (error.status === 401 || error.status === 403) return;
        state.failures += 1;
        listener.onLink("lost");
      }
      const delay = Math.min(MAX_RETRY_DELAY_MS, FIRST_RETRY_DELAY_MS * 2 ** state.failures);
      await new Promise((resolve) => setTimeout(resolve, delay));
    }
  })();
  return () => stop.abort();
}

async function pollJob(id, handlers, signal, listener) {
  const { preview, ...job } = await getJob(id, { signal });
  listener.onLink("open");
  preview.forEach(handlers.segment);
  handlers.job(job);
  await new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

async function streamJob(id, handlers, state, signal, listener) {
  const headers = state.lastSegment >= 0 ? { "Last-Event-ID": String(state.lastSegment) } : {};
  const response = await sendRequest("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}/events`, { headers, signal });
  if (!response.body) throw new ApiError(0, "no_stream", "");
  listener.onLink("open");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]));
      if (!fields.event) continue; // a heartbeat
      state.hasStreamed = true;
      handlers[fields.event]?.(JSON.parse(fields.data));
    }
  }
}
