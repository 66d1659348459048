// Plays the finished segments of a video while the rest renders: fragments are appended to a media source.

import { toPageUrl } from "./api.js";

const Source = window.ManagedMediaSource ?? window.MediaSource;
const BUFFER_BEHIND_S = 20;
const BUFFER_FULL = "QuotaExceededError";

/** Read the codecs of a fragment from its header; null: unknown. */
export function readCodecs(bytes) {
  const index = findWord(bytes, "avcC");
  if (index < 0) return null;
  const profile = Array.from(bytes.slice(index + 5, index + 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `video/mp4; codecs="avc1.${profile}, mp4a.40.2"`;
}

function findWord(bytes, word) {
  const codes = Array.from(word, (letter) => letter.charCodeAt(0));
  return bytes.findIndex((_, at) => codes.every((code, k) => bytes[at + k] === code));
}

export class Preview {
  /**
   * @param {HTMLVideoElement} video
   * @param {{onReady: (stop_s: number) => void, onUnsupported: () => void}} listener
   */
  constructor(video, listener) {
    this.video = video;
    this.listener = listener;
    this.source = null;
    this.buffer = null;
    this.isUnsupported = !Source;
    this.isClosed = false;
    this.queue = Promise.resolve();
    if (this.isUnsupported) listener.onUnsupported();
  }

  /** Append a segment after those before it. */
  add(segment) {
    this.queue = this.queue.then(() => this.append(segment)).catch(() => {}); // the segment is deleted with its job
  }

  async append({ url, start_s, stop_s }) {
    if (this.isUnsupported || this.isClosed) return;
    const response = await fetch(toPageUrl(url));
    if (!response.ok) return;
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (!this.source && !(await this.open(readCodecs(bytes)))) return;
    this.buffer.timestampOffset = start_s;
    await this.appendBytes(bytes);
    if (this.isClosed) return;
    this.listener.onReady(stop_s);
    if (this.video.paused && this.video.currentTime === 0) await this.startPlayback();
  }

  async open(codecs) {
    if (!codecs || !Source.isTypeSupported(codecs)) {
      this.isUnsupported = true;
      this.listener.onUnsupported();
      return false;
    }
    this.source = new Source();
    this.video.disableRemotePlayback = true;
    this.url = URL.createObjectURL(this.source);
    this.video.src = this.url;
    await new Promise((resolve) => this.source.addEventListener("sourceopen", resolve, { once: true }));
    this.buffer = this.source.addSourceBuffer(codecs);
    return true;
  }

  async appendBytes(bytes) {
    for (;;) {
      try {
        this.buffer.appendBuffer(bytes);
        return await this.waitForUpdate();
      } catch (error) {
        if (error.name !== BUFFER_FULL || this.isClosed) throw error;
        await this.makeRoom();
      }
    }
  }

  /** Remove what was played; if nothing was, wait until something is. */
  async makeRoom() {
    const until = this.video.currentTime - BUFFER_BEHIND_S;
    if (until > 0) {
      this.buffer.remove(0, until);
      await this.waitForUpdate();
    } else await new Promise((resolve) => this.video.addEventListener("timeupdate", resolve, { once: true }));
  }

  waitForUpdate() {
    return new Promise((resolve) => this.buffer.addEventListener("updateend", resolve, { once: true }));
  }

  async startPlayback() {
    try {
      await this.video.play();
    } catch {
      this.video.muted = true; // browsers play audio only after a click
      await this.video.play().catch(() => {});
    }
  }

  close() {
    this.isClosed = true;
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
