// The shape of a film's sound.

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

/** Draw peaks as bars; those before `at` (0 to 1) in the accent's colour. */
export function drawWave(canvas, peaks, at) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const paint = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
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
