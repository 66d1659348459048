// What can be created: one entry per model, with where it is submitted and the JSON schema of its inputs. The
// models' own come from the server; endpoints without a schema there are the few entries below.

import { models } from "./api.js";

const HIDDEN = new Set(["enable_base64_output"]);
const MEDIA = "uploader";

/** The endpoints that the list of models does not name; `like` lends them its options. */
const FURTHER = [
  {
    id: "lipsync-image-multi",
    path: "/api/v1/lipsync-image-multi",
    inFormState: true,
    media: ["image", "left_audio", "right_audio"],
    options: { order: { type: "string", enum: ["meanwhile", "left_right", "right_left"], default: "meanwhile" } },
    unfit: ["face", "fps", "loop_mode", "resolution"],
  },
];

/** @returns {Promise<{id, path, kind, inFormState, media: {name, limits}[], options: {name, rule}[]}[]>} */
export async function entries() {
  const listed = (await models()).map((model) => {
    const run = model.api_schema.api_schemas[0];
    const properties = Object.entries(run.request_schema.properties);
    return {
      id: model.model_id,
      path: run.api_path,
      inFormState: false,
      media: properties.filter(([, rule]) => rule["x-ui-component"] === MEDIA).map(([name, rule]) => ({ name, limits: rule["x-limits"] ?? {} })),
      options: properties
        .filter(([name, rule]) => rule["x-ui-component"] !== MEDIA && !HIDDEN.has(name) && !rule["x-alias-of"])
        .map(([name, rule]) => ({ name, rule })),
    };
  });
  const lent = listed.find((entry) => entry.options.length > 0)?.options ?? [];
  const further = FURTHER.map(({ media, options, unfit, ...entry }) => ({
    ...entry,
    media: media.map((name) => ({ name, limits: {} })),
    options: [...Object.entries(options).map(([name, rule]) => ({ name, rule })), ...lent.filter(({ name }) => !unfit.includes(name))],
  }));
  const all = [...listed, ...further].map((entry) => ({ ...entry, kind: kindOf(entry) }));
  return all.sort((one, other) => strictness(one) - strictness(other));
}

function kindOf({ media }) {
  if (media.filter(({ name }) => name.endsWith("audio")).length > 1) return "several";
  return media[0].name;
}

/** The model that refuses least comes first. */
const strictness = (entry) => entry.media.reduce((sum, { limits }) => sum + Object.keys(limits).length, 0);

/** The body that an endpoint takes. */
export const bodyOf = (entry, given) => (entry.inFormState ? { formState: given } : given);
