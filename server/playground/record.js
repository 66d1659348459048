// Recording from microphone or camera. Knows neither files' limits nor where the recording goes.

const TYPES = { audio: ["audio/webm", "audio/mp4"], video: ["video/webm", "video/mp4"] };

/** What this browser, on this page, can record: "audio" and "video" need a secure context. */
export function canRecord(kind) {
  return Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder && TYPES[kind]);
}

/**
 * Begin recording.
 * @param {"audio"|"video"} kind
 * @returns {Promise<{stream: MediaStream, stop: () => Promise<{file: File, duration_s: number}>, discard: () => void}>}
 */
export async function record(kind) {
  const asked = kind === "video" ? { video: { width: { ideal: 1280 } }, audio: false } : { audio: true };
  const stream = await navigator.mediaDevices.getUserMedia(asked);
  const type = TYPES[kind].find((candidate) => MediaRecorder.isTypeSupported(candidate)) ?? "";
  const recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  const began = performance.now();
  recorder.start(1000);
  const release = () => stream.getTracks().forEach((track) => track.stop());
  return {
    stream,
    stop: () =>
      new Promise((resolve) => {
        recorder.onstop = () => {
          release();
          const plain = recorder.mimeType.split(";")[0];
          const file = new File(parts, `recording.${plain.split("/")[1]}`, { type: plain });
          resolve({ file, duration_s: (performance.now() - began) / 1000 });
        };
        recorder.stop();
      }),
    discard() {
      recorder.onstop = null;
      if (recorder.state !== "inactive") recorder.stop();
      release();
    },
  };
}
