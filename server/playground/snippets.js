// Code that submits the same job through the API.

/** @returns {{name: string, text: string}[]} */
export function buildSnippets(job, base) {
  const { path, input, in_form_state } = job.request;
  const { title, ...fields } = input;
  const body = in_form_state ? { formState: fields } : fields;
  const json = JSON.stringify(body, null, 2);
  return [
    { name: "curl", text: curlCode(base, path, json, in_form_state) },
    { name: "Python", text: in_form_state ? studioPythonCode(base, path, fields) : pythonCode(base, job.model, fields) },
    { name: "JavaScript", text: in_form_state ? studioJavaScriptCode(base, path, json) : javaScriptCode(base, job.model, json) },
  ];
}

const resultPath = (inFormState) => (inFormState ? "/api/v1/jobs/ID" : "/api/v3/predictions/ID/result");

function curlCode(base, path, json, inFormState) {
  const quoted = json.replaceAll("'", "'\\''");
  return `curl -X POST '${base}${path}' \\
  -H "Authorization: Bearer $LIPSYNC_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${quoted}'

# The answer has an id. Poll the result with it:
curl '${base}${resultPath(inFormState)}' -H "Authorization: Bearer $LIPSYNC_KEY"`;
}

function pythonCode(base, model, fields) {
  return `import os
import wavespeed  # pip install wavespeed

client = wavespeed.Client(api_key=os.environ["LIPSYNC_KEY"], base_url="${base}")
prediction = client.run("${model}", ${pythonDict(fields)})
print(prediction["outputs"][0])`;
}

function studioPythonCode(base, path, fields) {
  return `import json, os, urllib.request

request = urllib.request.Request(
    "${base}${path}",
    json.dumps({"formState": ${pythonDict(fields)}}).encode(),
    {"Authorization": "Bearer " + os.environ["LIPSYNC_KEY"], "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request))["id"])  # then GET ${base}/api/v1/jobs/ID`;
}

/** Format fields as a Python dictionary. */
function pythonDict(fields) {
  const words = { true: "True", false: "False", null: "None" };
  const lines = Object.entries(fields).map(([name, value]) => `    ${JSON.stringify(name)}: ${words[value] ?? JSON.stringify(value)},`);
  return `{\n${lines.join("\n")}\n}`;
}

function javaScriptCode(base, model, json) {
  return `import { Client } from "wavespeed"; // npm install wavespeed

const client = new Client(process.env.LIPSYNC_KEY, { baseUrl: "${base}" });
const prediction = await client.run("${model}", ${json});
console.log(prediction.outputs[0]);`;
}

function studioJavaScriptCode(base, path, json) {
  return `const response = await fetch("${base}${path}", {
  method: "POST",
  headers: { Authorization: \`Bearer \${process.env.LIPSYNC_KEY}\`, "Content-Type": "application/json" },
  body: JSON.stringify(${json}),
});
console.log((await response.json()).id); // then GET ${base}/api/v1/jobs/ID`;
}
