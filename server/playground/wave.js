// Curves below a video: the waveform of its audio, and the lip-sync confidence. Pauses are shaded in both.

const COLUMNS = 600;

/**
 * Compute the peak of each of COLUMNS parts of the audio, 0 to 1.
 * @param {ArrayBuffer} content of a file with audio
 */
export async function computePeaks(content) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const audio = await context.decodeAudioData(content);
  const samples = audio.getChannelData(0);
  const step = Math.max(1, Math.floor(samples.length / COLUMNS));
  const peaks = new Float32Array(Math.ceil(samples.length / step));
  for (let k = 0; k < samples.length; k += 1) {
    const column = Math.floor(k / step);
    peaks[column] = Math.max(peaks[column], Math.abs(samples[k]));
  }
  const loudest = Math.max(0.02, ...peaks);
  return peaks.map((peak) => peak / loudest);
}

function prepareCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return { ratio, width, height, paint: canvas.getContext("2d"), style: getComputedStyle(canvas) };
}

const PAUSE_OPACITY = 0.22;

/** Shade the times in which the voice gate is closed: pairs of seconds. */
function shadePauses({ width, height, paint, style }, pauses_s, length_s) {
  paint.globalAlpha = PAUSE_OPACITY;
  paint.fillStyle = style.getPropertyValue("caret-color");
  for (const [start_s, stop_s] of pauses_s) paint.fillRect((start_s / length_s) * width, 0, ((stop_s - start_s) / length_s) * width, height);
  paint.globalAlpha = 1;
}

/**
 * Draw peaks as bars; those before `at_s` in the accent colour.
 * @param {[number, number][]} pauses_s start and stop of each pause
 */
export function drawWaveform(canvas, peaks, at_s, length_s, pauses_s) {
  const drawing = prepareCanvas(canvas);
  const { ratio, width, height, paint, style } = drawing;
  const bar = 3 * ratio;
  const count = Math.max(1, Math.floor(width / bar));
  paint.clearRect(0, 0, width, height);
  shadePauses(drawing, pauses_s, length_s);
  for (let k = 0; k < count; k += 1) {
    const from = Math.floor((k * peaks.length) / count);
    const to = Math.max(from + 1, Math.floor(((k + 1) * peaks.length) / count));
    const barHeight = Math.max(ratio, Math.max(...peaks.subarray(from, to)) * (height - 2));
    paint.fillStyle = k / count < at_s / length_s ? style.color : style.getPropertyValue("outline-color");
    paint.fillRect(k * bar, (height - barHeight) / 2, bar - ratio, barHeight);
  }
}

const GAP_S = 0.5;
/** Confidence at the top of the canvas, unless a value is higher. */
const TOP_CONFIDENCE = 3;

/**
 * Draw the lip-sync confidence over time, with gaps where it was not measured.
 * @param {[number, number][]} curve seconds and confidence, in order
 * @param {[number, number][]} pauses_s start and stop of each pause
 */
export function drawConfidence(canvas, curve, length_s, pauses_s) {
  const drawing = prepareCanvas(canvas);
  const { ratio, width, height, paint, style } = drawing;
  const top = Math.max(TOP_CONFIDENCE, ...curve.map(([, value]) => value));
  const x = (at_s) => (at_s / length_s) * width;
  const y = (value) => height - ratio - (Math.max(0, value) / top) * (height - 3 * ratio);
  const runs = [];
  curve.forEach(([at_s, value], k) => {
    if (k === 0 || at_s - curve[k - 1][0] > GAP_S) runs.push([]);
    runs.at(-1).push([x(at_s), y(value)]);
  });
  paint.clearRect(0, 0, width, height);
  shadePauses(drawing, pauses_s, length_s);
  for (const run of runs) {
    paint.beginPath();
    for (const [across, down] of run) paint.lineTo(across, down);
    paint.strokeStyle = style.color;
    paint.lineWidth = 1.5 * ratio;
    paint.stroke();
    paint.lineTo(run.at(-1)[0], height);
    paint.lineTo(run[0][0], height);
    paint.globalAlpha = 0.15;
    paint.fillStyle = style.color;
    paint.fill();
    paint.globalAlpha = 1;
  }
}
