// Entries of the form: one per model of the server, with its path and the JSON schema of its input.

import { listModels } from "./api.js";

const HIDDEN = new Set(["enable_base64_output", "segments"]);
const UPLOADER = "uploader";

/** Further entries of a model: two people in a video, as segments with a face. */
const DERIVED_ENTRIES = [
  {
    id: "bytedance/lipsync/audio-to-video (2)",
    model: "bytedance/lipsync/audio-to-video",
    media: ["video", "left_audio", "right_audio"],
    excluded: ["face"],
    files: ({ segment_0, segment_1, ...files }) => ({ ...files, left_audio: segment_0, right_audio: segment_1 }),
    body: ({ left_audio, right_audio, ...fields }) => ({
      ...fields,
      segments: [
        { face: "left", audio: left_audio },
        { face: "right", audio: right_audio },
      ],
    }),
  },
];

/**
 * @returns {Promise<{id, path, kind, files, body, media: {name, limits, optional}[], options: {name, rule}[]}[]>}
 *   files converts an earlier job's files to the form's; body converts the form's values to a request body
 */
export async function listEntries() {
  const entries = (await listModels()).map((model) => {
    const run = model.api_schema.api_schemas[0];
    const properties = Object.entries(run.request_schema.properties);
    const required = run.request_schema.required;
    return {
      id: model.model_id,
      path: run.api_path,
      files: (files) => files,
      body: (fields) => fields,
      media: properties
        .filter(([, rule]) => rule["x-ui-component"] === UPLOADER)
        .map(([name, rule]) => ({ name, limits: rule["x-limits"] ?? {}, optional: !required.includes(name) })),
      options: properties
        .filter(([name, rule]) => rule["x-ui-component"] !== UPLOADER && !HIDDEN.has(name) && !rule["x-alias-of"])
        .filter(([name]) => name !== "prompt" || "motion" in run.request_schema.properties) // other models ignore it
        .map(([name, rule]) => ({ name, rule })),
    };
  });
  const derived = DERIVED_ENTRIES.map(({ model, media, excluded, ...entry }) => {
    const { path, options, media: modelMedia } = entries.find(({ id }) => id === model);
    const limits = (name) => modelMedia.find((field) => field.name === name)?.limits ?? {};
    return {
      ...entry,
      path,
      media: media.map((name) => ({ name, limits: limits(name), optional: false })),
      options: options.filter(({ name }) => !excluded.includes(name)),
    };
  });
  const all = [...entries, ...derived].map((entry) => ({ ...entry, kind: kindOf(entry) }));
  return all.sort((a, b) => countLimits(a) - countLimits(b));
}

function kindOf({ media }) {
  if (media.filter(({ name }) => name.endsWith("audio")).length > 1) return "several";
  return media[0].name;
}

/** Count the limits of an entry: the least limited model is the first choice. */
const countLimits = (entry) => entry.media.reduce((sum, { limits }) => sum + Object.keys(limits).length, 0);
