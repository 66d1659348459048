// Recording from microphone or camera.

const TYPES = { audio: ["audio/webm", "audio/mp4"], video: ["video/webm", "video/mp4"] };

/** Return whether this browser can record "audio" or "video" on this page: it needs a secure context. */
export function canRecord(kind) {
  return Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder && TYPES[kind]);
}

/**
 * Start recording.
 * @param {"audio"|"video"} kind
 * @returns {Promise<{stream: MediaStream, stop: () => Promise<{file: File, duration_s: number}>, discard: () => void}>}
 */
export async function startRecording(kind) {
  const constraints = kind === "video" ? { video: { width: { ideal: 1280 } }, audio: false } : { audio: true };
  const stream = await navigator.mediaDevices.getUserMedia(constraints);
  const type = TYPES[kind].find((candidate) => MediaRecorder.isTypeSupported(candidate)) ?? "";
  const recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  const start = performance.now();
  recorder.start(1000);
  const release = () => stream.getTracks().forEach((track) => track.stop());
  return {
    stream,
    stop: () =>
      new Promise((resolve) => {
        recorder.onstop = () => {
          release();
          const mediaType = recorder.mimeType.split(";")[0];
          const file = new File(parts, `recording.${mediaType.split("/")[1]}`, { type: mediaType });
          resolve({ file, duration_s: (performance.now() - start) / 1000 });
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
