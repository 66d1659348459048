// Plays the finished stretches of a film while the rest is made: fragments go into a media source as they come.

import { here } from "./api.js";

const Source = window.ManagedMediaSource ?? window.MediaSource;
const KEPT_BEHIND_S = 20;
const FULL = "QuotaExceededError";

/** The codecs of a fragment, read from its own header; null where it has none that we know. */
export function codecsOf(bytes) {
  const at = find(bytes, "avcC");
  if (at < 0) return null;
  const profile = Array.from(bytes.slice(at + 5, at + 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `video/mp4; codecs="avc1.${profile}, mp4a.40.2"`;
}

function find(bytes, word) {
  const codes = Array.from(word, (letter) => letter.charCodeAt(0));
  return bytes.findIndex((_, at) => codes.every((code, k) => bytes[at + k] === code));
}

export class Preview {
  /**
   * @param {HTMLVideoElement} video
   * @param {{onReady: (stop_s: number) => void, onUnable: () => void}} tell
   */
  constructor(video, tell) {
    this.video = video;
    this.tell = tell;
    this.source = null;
    this.buffer = null;
    this.unable = !Source;
    this.closed = false;
    this.work = Promise.resolve();
    if (this.unable) tell.onUnable();
  }

  /** Append a stretch, after those before it. */
  add(stretch) {
    this.work = this.work.then(() => this.append(stretch)).catch(() => {}); // a stretch may be gone with its job
  }

  async append({ url, start_s, stop_s }) {
    if (this.unable || this.closed) return;
    const answer = await fetch(here(url));
    if (!answer.ok) return;
    const bytes = new Uint8Array(await answer.arrayBuffer());
    if (!this.source && !(await this.open(codecsOf(bytes)))) return;
    this.buffer.timestampOffset = start_s;
    await this.put(bytes);
    if (this.closed) return;
    this.tell.onReady(stop_s);
    if (this.video.paused && this.video.currentTime === 0) await this.begin();
  }

  async open(codecs) {
    if (!codecs || !Source.isTypeSupported(codecs)) {
      this.unable = true;
      this.tell.onUnable();
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

  async put(bytes) {
    for (;;) {
      try {
        this.buffer.appendBuffer(bytes);
        return await this.settled();
      } catch (error) {
        if (error.name !== FULL || this.closed) throw error;
        await this.makeRoom();
      }
    }
  }

  /** Drop what was watched; where nothing was, wait until something is. */
  async makeRoom() {
    const until = this.video.currentTime - KEPT_BEHIND_S;
    if (until > 0) {
      this.buffer.remove(0, until);
      await this.settled();
    } else await new Promise((resolve) => this.video.addEventListener("timeupdate", resolve, { once: true }));
  }

  settled() {
    return new Promise((resolve) => this.buffer.addEventListener("updateend", resolve, { once: true }));
  }

  async begin() {
    try {
      await this.video.play();
    } catch {
      this.video.muted = true; // sound needs a click first
      await this.video.play().catch(() => {});
    }
  }

  close() {
    this.closed = true;
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
