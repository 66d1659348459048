// The server as this page sees it: its public HTTP API. The key lies in session storage and nowhere else.

const ROOT = new URL("../", import.meta.url);
const NATIVE = "api/native/v1";
const KEY = "lipsync.key";
const FINAL = ["succeeded", "failed", "cancelled"];

/** A refusal, or no answer at all (`status` 0). */
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
  can(scope) {
    return this.me?.scopes.includes(scope) ?? false;
  },
  /** Called when the server does not take the key (any more). */
  onRefused: () => {},
};

export const isFinal = (state) => FINAL.includes(state);

/** A link of the server's as this page reaches it, whatever name the server goes by. */
export function here(link) {
  const { pathname, search } = new URL(link, ROOT);
  return new URL(pathname + search, ROOT.origin).href;
}

/** Whether a link is of this server. */
export function isOurs(link) {
  return Boolean(link) && new URL(link, ROOT).pathname.includes("/files/");
}

/** The address that programs use. */
export const base = () => ROOT.href.replace(/\/$/, "");

async function send(method, path, { body, headers = {}, signal } = {}) {
  const given = { ...headers, Authorization: `Bearer ${session.key}` };
  if (body !== undefined) given["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), { method, headers: given, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const error = new ApiError(answer.status, told.error_code ?? told.error ?? "", told.message ?? told.error ?? `HTTP ${answer.status}`);
  if (answer.status === 401) session.onRefused(error);
  throw error;
}

async function ask(method, path, given) {
  const answer = await send(method, path, given);
  return answer.status === 204 ? null : answer.json();
}

export const me = () => ask("GET", `${NATIVE}/me`);
export const health = () => ask("GET", `${NATIVE}/health`);
export const job = (id, given) => ask("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}`, given);
export const credentials = (id) => ask("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}/credentials`);
export const cancel = (id) => ask("POST", `api/v3/predictions/${encodeURIComponent(id)}/cancel`);
export const remove = (id) => ask("DELETE", `api/v3/predictions/${encodeURIComponent(id)}`);
export const models = async () => (await ask("GET", "api/v3/models")).data;
export const workers = () => ask("GET", "admin/workers");
export const keys = () => ask("GET", "admin/keys");
export const revokeKey = (id) => ask("DELETE", `admin/keys/${encodeURIComponent(id)}`);

export function jobs({ states = [], text = "", since = null, tenant = null, offset = 0, limit = 25 }, given) {
  const query = new URLSearchParams({ offset, limit });
  for (const state of states) query.append("state", state);
  if (text) query.set("text", text);
  if (since) query.set("since", since);
  if (tenant) query.set("tenant", tenant);
  return ask("GET", `${NATIVE}/jobs?${query}`, given);
}

export function createKey({ name, tenant, scopes }) {
  return ask("POST", `admin/keys?${new URLSearchParams({ name, tenant, scopes: scopes.join(" ") })}`);
}

/** Submit; the new job's id. A repeated call with the same token is the same job. */
export async function submit(path, body, token) {
  const told = await ask("POST", path.replace(/^\//, ""), { body, headers: { "Idempotency-Key": token } });
  return (told.data?.id ?? told.id).replaceAll("-", "");
}

/** A word that nobody else has; `crypto.randomUUID` exists on https only. */
export function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Upload a file; its link.
 * @param {File} file
 * @param {(sent: number) => void} onProgress bytes sent so far
 * @param {AbortSignal} signal
 */
export async function upload(file, onProgress, signal) {
  const body = { filename: file.name, size: file.size, content_type: file.type.split(";")[0] || undefined };
  const { data } = await ask("POST", "api/v3/media/uploads", { body, signal });
  await new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much it has sent
    request.open("PUT", here(data.upload.url));
    for (const [name, value] of Object.entries(data.upload.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () => (request.status === 200 ? resolve() : reject(new ApiError(request.status, "", plain(request))));
    request.onerror = () => reject(new ApiError(0, "unreachable", ""));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
  return data.download_url;
}

function plain(request) {
  try {
    return JSON.parse(request.responseText).message;
  } catch {
    return request.responseText.slice(0, 200);
  }
}

// --- a job as it happens ---

const POLL_MS = 1500;
const LONGEST_PAUSE_MS = 5000;
const TRIES_BEFORE_POLLING = 3;

/**
 * Follow a job until it ends: by server-sent events, or by asking again and again where streams do not come
 * through. A lost connection is taken up again; no stretch is told twice.
 *
 * @param {{onJob, onSegment, onGone, onLink: (state: "open"|"lost") => void}} tell
 * @returns {() => void} stops it
 */
export function follow(id, tell) {
  const stop = new AbortController();
  const seen = { after: -1, failures: 0, streamed: false };
  const heard = {
    job(data) {
      tell.onJob(data);
      if (isFinal(data.state)) stop.abort();
    },
    segment(data) {
      if (data.index <= seen.after) return;
      seen.after = data.index;
      tell.onSegment(data);
    },
    gone() {
      stop.abort();
      tell.onGone();
    },
  };
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const polls = !seen.streamed && seen.failures >= TRIES_BEFORE_POLLING;
        await (polls ? poll(id, heard, stop.signal, tell) : stream(id, heard, seen, stop.signal, tell));
        seen.failures = 0;
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error.status === 404) return heard.gone();
        if (error.status === 401 || error.status === 403) return;
        seen.failures += 1;
        tell.onLink("lost");
      }
      const pause = Math.min(LONGEST_PAUSE_MS, 250 * 2 ** seen.failures);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  })();
  return () => stop.abort();
}

async function poll(id, heard, signal, tell) {
  const { preview, ...rest } = await job(id, { signal });
  tell.onLink("open");
  preview.forEach(heard.segment);
  heard.job(rest);
  await new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

async function stream(id, heard, seen, signal, tell) {
  const headers = seen.after >= 0 ? { "Last-Event-ID": String(seen.after) } : {};
  const answer = await send("GET", `${NATIVE}/jobs/${encodeURIComponent(id)}/events`, { headers, signal });
  if (!answer.body) throw new ApiError(0, "no_stream", "");
  tell.onLink("open");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]));
      if (!fields.event) continue; // a heartbeat
      seen.streamed = true;
      heard[fields.event]?.(JSON.parse(fields.data));
    }
  }
}
