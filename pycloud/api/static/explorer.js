// SPDX-License-Identifier: Apache-2.0
// Lets the reader of the explorer send the requests that it shows. The page is complete
// without this; nothing is stored, and nothing is sent but what a button press asks for.

const LONGEST_SHOWN = 20000;

function labelled(text, field) {
  const label = document.createElement("label");
  label.append(text, field);
  return label;
}

function fieldsOf(operation) {
  return [...operation.querySelectorAll("tr[data-name]")].map((row) => {
    const input = document.createElement("input");
    input.spellcheck = false;
    return { name: row.dataset.name, place: row.dataset.place, input };
  });
}

function requestOf(operation, fields, body) {
  let path = operation.dataset.path;
  const query = new URLSearchParams();
  const headers = new Headers();
  for (const { name, place, input } of fields) {
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(input.value));
    else if (input.value && place === "query") query.set(name, input.value);
    else if (input.value) headers.set(name, input.value);
  }
  const token = document.getElementById("token").value.trim();
  if (token) headers.set("Authorization", `Bearer ${token}`);
  if (body) headers.set("Content-Type", operation.dataset.bodyType);
  const target = query.size ? `${path}?${query}` : path;
  return [target, { method: operation.dataset.method, headers, body: body?.value, redirect: "error" }];
}

async function shown(response) {
  const head = [`HTTP ${response.status} ${response.statusText}`];
  for (const [name, value] of response.headers) head.push(`${name}: ${value}`);
  const type = response.headers.get("Content-Type") ?? "";
  if (!/json|text|yaml/.test(type)) return `${head.join("\n")}\n\n(not shown)`;
  let text = await response.text();
  if (type.includes("json") && text) text = JSON.stringify(JSON.parse(text), null, 2);
  return `${head.join("\n")}\n\n${text.slice(0, LONGEST_SHOWN)}`;
}

function formOf(operation) {
  const form = document.createElement("form");
  form.className = "try";
  const fields = fieldsOf(operation);
  for (const field of fields) form.append(labelled(field.name, field.input));
  let body = null;
  if (operation.dataset.bodyType) {
    body = document.createElement("textarea");
    body.spellcheck = false;
    body.value = operation.dataset.body;
    form.append(labelled("body", body));
  }
  const button = document.createElement("button");
  button.textContent = "Send";
  const output = document.createElement("pre");
  output.setAttribute("aria-live", "polite");
  output.hidden = true;
  form.append(button, output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.hidden = false;
    output.textContent = "…";
    try {
      output.textContent = await shown(await fetch(...requestOf(operation, fields, body)));
    } catch (error) {
      output.textContent = String(error);
    }
  });
  return form;
}

const tokenForm = document.querySelector(".token");
tokenForm.hidden = false;
tokenForm.addEventListener("submit", (event) => event.preventDefault());
for (const operation of document.querySelectorAll(".operation")) {
  operation.addEventListener("toggle", () => operation.append(formOf(operation)), { once: true });
}
if (location.hash) document.querySelector(`details${CSS.escape(location.hash).replace("\\#", "#")}`)?.setAttribute("open", "");
