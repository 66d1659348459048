// What runs along under a film: the shape of its sound, and how well the lips fit it.

const COLUMNS = 600;

/**
 * Loudest sample of each of COLUMNS stretches, 0 to 1.
 * @param {ArrayBuffer} content of a file with sound
 */
export async function peaksOf(content) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const sound = await context.decodeAudioData(content);
  const samples = sound.getChannelData(0);
  const step = Math.max(1, Math.floor(samples.length / COLUMNS));
  const peaks = new Float32Array(Math.ceil(samples.length / step));
  for (let k = 0; k < samples.length; k += 1) {
    const column = Math.floor(k / step);
    peaks[column] = Math.max(peaks[column], Math.abs(samples[k]));
  }
  const most = Math.max(0.02, ...peaks);
  return peaks.map((peak) => peak / most);
}

function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return { ratio, width, height, paint: canvas.getContext("2d"), style: getComputedStyle(canvas) };
}

/** Draw peaks as bars; those before `at` (0 to 1) in the accent's colour. */
export function drawWave(canvas, peaks, at) {
  const { ratio, width, height, paint, style } = prepare(canvas);
  const bar = 3 * ratio;
  const count = Math.max(1, Math.floor(width / bar));
  paint.clearRect(0, 0, width, height);
  for (let k = 0; k < count; k += 1) {
    const from = Math.floor((k * peaks.length) / count);
    const to = Math.max(from + 1, Math.floor(((k + 1) * peaks.length) / count));
    const tall = Math.max(ratio, Math.max(...peaks.subarray(from, to)) * (height - 2));
    paint.fillStyle = k / count < at ? style.color : style.getPropertyValue("outline-color");
    paint.fillRect(k * bar, (height - tall) / 2, bar - ratio, tall);
  }
}

const GAP_S = 0.5;
/** Confidence that is drawn as high as the line goes, unless one is higher. */
const HIGH = 3;

/**
 * Draw how clearly lips and voice belong together as a hill line; where it was not measured there is none.
 * @param {[number, number][]} curve seconds and confidence, in order
 */
export function drawCurve(canvas, curve, length_s) {
  const { ratio, width, height, paint, style } = prepare(canvas);
  const high = Math.max(HIGH, ...curve.map(([, value]) => value));
  const x = (at_s) => (at_s / length_s) * width;
  const y = (value) => height - ratio - (Math.max(0, value) / high) * (height - 3 * ratio);
  const runs = [];
  curve.forEach(([at_s, value], k) => {
    if (k === 0 || at_s - curve[k - 1][0] > GAP_S) runs.push([]);
    runs.at(-1).push([x(at_s), y(value)]);
  });
  paint.clearRect(0, 0, width, height);
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
