"use strict";
// The table of records: columns of equal length, shown fifty rows at a time. Every string goes through textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const names = Object.keys(data);
const body = document.querySelector("#records tbody");
const size = 50;
let rows = [], page = 0, sortBy = names.includes("q_value") ? "q_value" : names[0], rising = true;

function wanted(i) {
  const filter = document.getElementById("filter").value;
  const search = document.getElementById("search").value;
  if (search && !String(data.id[i]).includes(search)) return false;
  if (filter === "flagged") return data.flagged[i];
  if (filter === "members") return data.label[i] === 1;
  if (filter === "nonmembers") return data.label[i] === 0;
  return true;
}

function compare(a, b) {
  const x = data[sortBy][a], y = data[sortBy][b];
  if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
  const order = x < y ? -1 : x > y ? 1 : 0;
  return rising ? order : -order;
}

function cell(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text === null ? "–" : String(text);
  return element;
}

function draw() {
  body.replaceChildren(...rows.slice(page * size, (page + 1) * size).map((i) => {
    const row = document.createElement("tr");
    row.append(...names.map((name) => cell("td", data[name][i])));
    return row;
  }));
  const pages = Math.max(1, Math.ceil(rows.length / size));
  document.getElementById("page").textContent = `page ${page + 1} of ${pages}, ${rows.length} records`;
}

function refresh() {
  rows = data[names[0]].map((_, i) => i).filter(wanted).sort(compare);
  page = 0;
  draw();
}

const head = document.createElement("tr");
for (const name of names) {
  const header = cell("th", "");
  const button = cell("button", name);
  button.type = "button";
  button.addEventListener("click", () => { rising = sortBy === name ? !rising : true; sortBy = name; refresh(); });
  header.append(button);
  head.append(header);
}
document.querySelector("#records thead").append(head);
document.getElementById("filter").addEventListener("change", refresh);
document.getElementById("search").addEventListener("input", refresh);
document.getElementById("previous").addEventListener("click", () => { page = Math.max(0, page - 1); draw(); });
document.getElementById("next").addEventListener("click", () => { if ((page + 1) * size < rows.length) page += 1; draw(); });
document.getElementById("export").addEventListener("click", () => {
  // A leading quote keeps spreadsheets from reading a hostile id as a formula.
  const quote = (v) => `"${String(v ?? "").replace(/^[=+@]/, "'$&").replaceAll('"', '""')}"`;
  const lines = [names.map(quote).join(","), ...rows.map((i) => names.map((n) => quote(data[n][i])).join(","))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n")], { type: "text/csv" }));
  link.download = "records.csv";
  link.click();
});
refresh();
