// The same job as a program would ask for it.

/** @returns {{name: string, text: string}[]} */
export function snippets(job, base) {
  const { path, input, in_form_state } = job.request;
  const { title, ...given } = input;
  const body = in_form_state ? { formState: given } : given;
  const json = JSON.stringify(body, null, 2);
  return [
    { name: "curl", text: curl(base, path, json, in_form_state) },
    { name: "Python", text: in_form_state ? plainPython(base, path, given) : python(base, job.model, given) },
    { name: "JavaScript", text: in_form_state ? plainJavaScript(base, path, json) : javaScript(base, job.model, json) },
  ];
}

const result = (inFormState) => (inFormState ? "/api/v1/jobs/ID" : "/api/v3/predictions/ID/result");

function curl(base, path, json, inFormState) {
  const quoted = json.replaceAll("'", "'\\''");
  return `curl -X POST '${base}${path}' \\
  -H "Authorization: Bearer $LIPSYNC_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${quoted}'

# the answer names an id; ask until it is done:
curl '${base}${result(inFormState)}' -H "Authorization: Bearer $LIPSYNC_KEY"`;
}

function python(base, model, given) {
  return `import os
import wavespeed  # pip install wavespeed

client = wavespeed.Client(api_key=os.environ["LIPSYNC_KEY"], base_url="${base}")
done = client.run("${model}", ${literal(given)})
print(done["outputs"][0])`;
}

function plainPython(base, path, given) {
  return `import json, os, urllib.request

request = urllib.request.Request(
    "${base}${path}",
    json.dumps({"formState": ${literal(given)}}).encode(),
    {"Authorization": "Bearer " + os.environ["LIPSYNC_KEY"], "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request))["id"])  # then GET ${base}/api/v1/jobs/ID`;
}

/** JSON as Python writes it. */
function literal(given) {
  const words = { true: "True", false: "False", null: "None" };
  const lines = Object.entries(given).map(([name, value]) => `    ${JSON.stringify(name)}: ${words[value] ?? JSON.stringify(value)},`);
  return `{\n${lines.join("\n")}\n}`;
}

function javaScript(base, model, json) {
  return `import { Client } from "wavespeed"; // npm install wavespeed

const client = new Client(process.env.LIPSYNC_KEY, { baseUrl: "${base}" });
const done = await client.run("${model}", ${json});
console.log(done.outputs[0]);`;
}

function plainJavaScript(base, path, json) {
  return `const answer = await fetch("${base}${path}", {
  method: "POST",
  headers: { Authorization: \`Bearer \${process.env.LIPSYNC_KEY}\`, "Content-Type": "application/json" },
  body: JSON.stringify(${json}),
});
console.log((await answer.json()).id); // then GET ${base}/api/v1/jobs/ID`;
}
