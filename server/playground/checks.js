// What can be known of a file before it is uploaded: its kind by its first bytes, size, length, pixels.
// Pure but for reading the file; says why something is refused as [text's name, values].

const IMAGE_FORMATS = ["png", "jpg", "webp", "bmp"];

/** What a file's first bytes say, as the server will see them: {kinds, format}, or null. */
export function sniff(head) {
  const text = (from, to) => String.fromCharCode(...head.slice(from, to));
  const film = (format) => ({ kinds: ["video", "audio"], format });
  const sound = (format) => ({ kinds: ["audio"], format });
  const picture = (format) => ({ kinds: ["image"], format });
  if (text(4, 8) === "ftyp") {
    const brand = text(8, 12);
    if (["M4A ", "M4B "].includes(brand)) return sound("m4a");
    if (brand === "qt  ") return film("mov");
    return ["heic", "heix", "mif1", "avif", "avis"].includes(brand) ? null : film("mp4");
  }
  if (["moov", "mdat", "wide"].includes(text(4, 8))) return film("mov");
  if (text(0, 4) === "\x1a\x45\xdf\xa3") return film(text(0, 64).includes("webm") ? "webm" : "mkv");
  if (["RIFF", "RF64"].includes(text(0, 4))) return { WAVE: sound("wav"), WEBP: picture("webp") }[text(8, 12)] ?? null;
  if (text(0, 4) === "\x89PNG") return picture("png");
  if (text(0, 3) === "\xff\xd8\xff") return picture("jpg");
  if (text(0, 3) === "ID3") return sound("mp3");
  if (text(0, 4) === "OggS") return sound("ogg");
  if (text(0, 4) === "fLaC") return sound("flac");
  if (head[0] === 0xff && (head[1] & 0xf6) === 0xf0) return sound("aac");
  if (head[0] === 0xff && (head[1] & 0xe0) === 0xe0 && head[1] & 0x06) return sound("mp3");
  return null;
}

/** The kind of media that a field takes. */
export const kindOf = (field) => field.split("_").find((word) => ["video", "image", "audio"].includes(word));

export async function look(file) {
  const head = new Uint8Array(await file.slice(0, 4096).arrayBuffer());
  return { size: file.size, found: sniff(head) };
}

/**
 * Why a file is refused, or null.
 * @param {string} kind video, image or audio
 * @param {{size, found, duration_s?, width?, height?}} seen what is known of it
 * @param {object} limits of the model's schema
 * @param {number} mostBytes of any upload
 */
export function refusal(kind, seen, limits, mostBytes) {
  if (seen.size === 0) return ["refuse.empty", {}];
  if (!seen.found?.kinds.includes(kind)) return ["refuse.kind", { what: kind }];
  const format = kind === "audio" && seen.found.format === "mp4" ? "m4a" : seen.found.format;
  if (kind === "image" && !IMAGE_FORMATS.includes(format)) return ["refuse.kind", { what: kind }];
  if (limits.formats && !limits.formats.includes(format)) return ["refuse.format", { found: format, formats: limits.formats.join(", ") }];
  const most = Math.min(limits.max_bytes ?? Infinity, mostBytes);
  if (seen.size > most) return ["refuse.bytes", { size: seen.size, most }];
  const { min_s: least = 0, max_s: longest = Infinity } = limits;
  if (Number.isFinite(seen.duration_s) && (seen.duration_s < least || seen.duration_s > longest)) {
    return ["refuse.duration", { seconds: seen.duration_s.toFixed(1), low: least, high: longest }];
  }
  const { min_side_px: low = 0, max_side_px: high = Infinity } = limits;
  if (seen.width && (Math.min(seen.width, seen.height) < low || Math.max(seen.width, seen.height) > high)) {
    return ["refuse.pixels", { width: seen.width, height: seen.height, low, high }];
  }
  return null;
}
