// Checks of a file before its upload: format by its first bytes, size, duration, pixels. A problem is
// [name of a text, values].

const IMAGE_FORMATS = ["png", "jpg", "webp", "bmp"];

/** Detect a format by a file's first bytes, as the server does: {kinds, format}, or null. */
export function detectFormat(head) {
  const text = (from, to) => String.fromCharCode(...head.slice(from, to));
  const video = (format) => ({ kinds: ["video", "audio"], format });
  const audio = (format) => ({ kinds: ["audio"], format });
  const image = (format) => ({ kinds: ["image"], format });
  if (text(4, 8) === "ftyp") {
    const brand = text(8, 12);
    if (["M4A ", "M4B "].includes(brand)) return audio("m4a");
    if (brand === "qt  ") return video("mov");
    return ["heic", "heix", "mif1", "avif", "avis"].includes(brand) ? null : video("mp4");
  }
  if (["moov", "mdat", "wide"].includes(text(4, 8))) return video("mov");
  if (text(0, 4) === "\x1a\x45\xdf\xa3") return video(text(0, 64).includes("webm") ? "webm" : "mkv");
  const converted = { kinds: ["video"], format: "mp4" }; // by the server
  if (["RIFF", "RF64"].includes(text(0, 4)))
    return { WAVE: audio("wav"), WEBP: image("webp"), "AVI ": converted }[text(8, 12)] ?? null;
  if (text(0, 4) === "FORM" && ["AIFF", "AIFC"].includes(text(8, 12))) return audio("wav");
  if (text(0, 8) === "0&\xb2u\x8ef\xcf\x11") return converted;
  if (text(0, 4) === "FLV\x01") return converted;
  if (text(0, 4) === "\x89PNG") return image("png");
  if (text(0, 3) === "\xff\xd8\xff") return image("jpg");
  if (text(0, 3) === "ID3") return audio("mp3");
  if (text(0, 4) === "OggS") return audio("ogg");
  if (text(0, 4) === "fLaC") return audio("flac");
  if (head[0] === 0xff && (head[1] & 0xf6) === 0xf0) return audio("aac");
  if (head[0] === 0xff && (head[1] & 0xe0) === 0xe0 && head[1] & 0x06) return audio("mp3");
  return null;
}

/** Return the kind of media of a field. */
export const mediaKindOf = (field) => field.split("_").find((word) => ["video", "image", "audio"].includes(word));

/** Read the size and the format of a file. */
export async function inspectFile(file) {
  const head = new Uint8Array(await file.slice(0, 4096).arrayBuffer());
  return { size: file.size, detected: detectFormat(head) };
}

const TOLERANCE_S = 0.5; // as the server's
const TOLERANCE_PX = 8;

/**
 * Find why a file cannot be used; null: it can.
 * @param {string} kind video, image or audio
 * @param {{size, detected, duration_s?, width?, height?}} facts what is known of the file
 * @param {object} limits of the model's schema
 * @param {number} maxUploadBytes of any upload
 */
export function findProblem(kind, facts, limits, maxUploadBytes) {
  if (facts.size === 0) return ["refuse.empty", {}];
  if (!facts.detected?.kinds.includes(kind)) return ["refuse.kind", { what: kind }];
  const format = kind === "audio" && facts.detected.format === "mp4" ? "m4a" : facts.detected.format;
  if (kind === "image" && !IMAGE_FORMATS.includes(format)) return ["refuse.kind", { what: kind }];
  if (limits.formats && !limits.formats.includes(format)) return ["refuse.format", { format, formats: limits.formats }];
  const limit = Math.min(limits.max_bytes ?? Infinity, maxUploadBytes);
  if (facts.size > limit) return ["refuse.bytes", { size: facts.size, limit }];
  const { min_s: shortest = 0, max_s: longest = Infinity } = limits;
  if (Number.isFinite(facts.duration_s) && (facts.duration_s < shortest - TOLERANCE_S || facts.duration_s > longest + TOLERANCE_S)) {
    return ["refuse.duration", { seconds: facts.duration_s.toFixed(1), low: shortest, high: longest }];
  }
  const { min_side_px: low = 0, max_side_px: high = Infinity } = limits;
  if (facts.width && (Math.min(facts.width, facts.height) < low || Math.max(facts.width, facts.height) > high)) {
    return ["refuse.pixels", { width: facts.width, height: facts.height, low, high }];
  }
  const allowed = limits.short_sides_px;
  if (facts.width && allowed && !allowed.some((side) => Math.abs(Math.min(facts.width, facts.height) - side) <= TOLERANCE_PX)) {
    return ["refuse.resolution", { width: facts.width, height: facts.height, sides: allowed.map((side) => `${side}p`).join(", ") }];
  }
  return null;
}
