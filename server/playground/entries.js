// What can be created: one entry per model, with where it is submitted and the JSON schema of its inputs, as the
// server lists them.

import { models } from "./api.js";

const HIDDEN = new Set(["enable_base64_output", "segments"]);
const MEDIA = "uploader";

/** What one model takes in another way: two people of a video, as segments with a face. */
const FURTHER = [
  {
    id: "bytedance/lipsync/audio-to-video (2)",
    of: "bytedance/lipsync/audio-to-video",
    media: ["video", "left_audio", "right_audio"],
    unfit: ["face"],
    files: ({ segment_0, segment_1, ...files }) => ({ ...files, left_audio: segment_0, right_audio: segment_1 }),
    body: ({ left_audio, right_audio, ...given }) => ({
      ...given,
      segments: [
        { face: "left", audio: left_audio },
        { face: "right", audio: right_audio },
      ],
    }),
  },
];

/**
 * @returns {Promise<{id, path, kind, files, body, media: {name, limits, optional}[], options: {name, rule}[]}[]>}
 *   files and body turn an earlier job's files into the form's, and the form's values into what is sent
 */
export async function entries() {
  const listed = (await models()).map((model) => {
    const run = model.api_schema.api_schemas[0];
    const properties = Object.entries(run.request_schema.properties);
    const required = run.request_schema.required;
    return {
      id: model.model_id,
      path: run.api_path,
      files: (files) => files,
      body: (given) => given,
      media: properties
        .filter(([, rule]) => rule["x-ui-component"] === MEDIA)
        .map(([name, rule]) => ({ name, limits: rule["x-limits"] ?? {}, optional: !required.includes(name) })),
      options: properties
        .filter(([name, rule]) => rule["x-ui-component"] !== MEDIA && !HIDDEN.has(name) && !rule["x-alias-of"])
        .filter(([name]) => name !== "prompt" || "motion" in run.request_schema.properties) // elsewhere unused
        .map(([name, rule]) => ({ name, rule })),
    };
  });
  const further = FURTHER.map(({ of, media, unfit, ...entry }) => {
    const { path, options, media: known } = listed.find(({ id }) => id === of);
    const limits = (name) => known.find((one) => one.name === name)?.limits ?? {};
    return {
      ...entry,
      path,
      media: media.map((name) => ({ name, limits: limits(name), optional: false })),
      options: options.filter(({ name }) => !unfit.includes(name)),
    };
  });
  const all = [...listed, ...further].map((entry) => ({ ...entry, kind: kindOf(entry) }));
  return all.sort((one, other) => strictness(one) - strictness(other));
}

function kindOf({ media }) {
  if (media.filter(({ name }) => name.endsWith("audio")).length > 1) return "several";
  return media[0].name;
}

/** The model that refuses least comes first. */
const strictness = (entry) => entry.media.reduce((sum, { limits }) => sum + Object.keys(limits).length, 0);
