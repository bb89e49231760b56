"use strict";
// The table of records and the view of one. Every string of the data goes through textContent, never through HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const MILLI = 1000, SHARES = 65534;
  const NA = "–";

  function unpack(text, Kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Kind(bytes.buffer);
  }
  const n = data.id.length;
  const group = unpack(data.group.index, Uint16Array), reason = unpack(data.reason.index, Uint16Array);
  const columns = {
    tokens: unpack(data.tokens, Uint32Array), score: unpack(data.score, Float32Array),
    p: unpack(data.p, Float32Array), q: unpack(data.q, Float32Array),
  };
  const above = Object.fromEntries(Object.entries(data.above).map(([name, text]) => [name, unpack(text, Uint16Array)]));
  const hasGroups = data.group.names.length > 0;
  const kindNames = { M: "member", N: "non-member", C: "candidate" };

  const groupOf = (i) => (group[i] ? data.group.names[group[i] - 1] : "");
  const reasonOf = (i) => (reason[i] ? data.reason.names[reason[i] - 1] : "");
  const number = (v, digits = 3) => (Number.isNaN(v) ? NA : String(Number(v.toPrecision(digits))));
  function decision(i) {
    if (data.flagged[i] === "1") return "⚑ flagged";
    if (!Number.isNaN(columns.q[i])) return "not flagged";
    return Number.isNaN(columns.score[i]) ? "not scored" : "calibrates";
  }

  // name, heading, value to sort by, text to show, class
  const shown = [
    ["id", "Record", (i) => data.id[i], (i) => data.id[i], "id"],
    ["decision", "Decision", decision, decision, "decision"],
    ["score", "Score", (i) => columns.score[i], (i) => number(columns.score[i], 4), "number"],
    ["p", "p", (i) => columns.p[i], (i) => number(columns.p[i]), "number"],
    ["q", "q", (i) => columns.q[i], (i) => number(columns.q[i]), "number"],
    ["tokens", "Tokens", (i) => columns.tokens[i], (i) => String(columns.tokens[i]), "number"],
    ["kind", "Kind", (i) => data.kind[i], (i) => kindNames[data.kind[i]], ""],
    ["group", "Group", groupOf, groupOf, "group"],
  ].filter(([name]) => name !== "group" || hasGroups);

  function element(kind, text, name) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  // ---- filters ----
  const low = (text) => text.toLowerCase();
  // "text" in quotes asks for exactly this text, anything else for a part of it.
  const fits = (text, asked) => (/^".+"$/.test(asked) ? low(text) === asked.slice(1, -1) : low(text).includes(asked));
  function bound(id, fallback) {
    const input = $(id), text = input.value.trim().replace(",", ".");
    const value = Number(text);
    input.classList.toggle("wrong", Number.isNaN(value));
    input.setAttribute("aria-invalid", String(Number.isNaN(value)));
    return text === "" || Number.isNaN(value) ? fallback : value;
  }
  const showers = {
    all: () => true,
    flagged: (i) => data.flagged[i] === "1",
    unflagged: (i) => data.flagged[i] !== "1" && !Number.isNaN(columns.q[i]),
    unscored: (i) => Number.isNaN(columns.score[i]),
    M: (i) => data.kind[i] === "M", N: (i) => data.kind[i] === "N", C: (i) => data.kind[i] === "C",
  };
  // A bound on a number leaves out records that have none.
  const within = (value, least, most) => (least === -Infinity && most === Infinity) || (value >= least && value <= most);
  function chosen() {
    const show = showers[$("f-show").value], id = low($("f-id").value), name = low($("f-group").value);
    const score = [bound("f-score-from", -Infinity), bound("f-score-to", Infinity)];
    const tokens = [bound("f-tokens-from", -Infinity), bound("f-tokens-to", Infinity)];
    const q = bound("f-q", Infinity);
    const rows = [];
    for (let i = 0; i < n; i++) {
      if (show(i) && fits(data.id[i], id) && fits(groupOf(i), name)
        && within(columns.score[i], ...score) && within(columns.tokens[i], ...tokens) && within(columns.q[i], -Infinity, q)) rows.push(i);
    }
    return rows;
  }

  // ---- table ----
  let rows = [], page = 0, sortBy = "score", rising = false;
  const headings = {};

  function sort() {
    const value = shown.find(([name]) => name === sortBy)[2];
    const direction = rising ? 1 : -1;
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      const noX = Number.isNaN(x) || x === "", noY = Number.isNaN(y) || y === "";
      if (noX || noY) return noX - noY || a - b; // what is not known comes last, whichever way
      return x < y ? -direction : x > y ? direction : a - b;
    });
    for (const [name, header] of Object.entries(headings)) {
      if (name === sortBy) header.setAttribute("aria-sort", rising ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
      header.querySelector("span").textContent = name === sortBy ? (rising ? " ▲" : " ▼") : "";
    }
  }

  function cell(i, [name, , , text, kind]) {
    const made = element(name === "id" ? "th" : "td", undefined, kind);
    if (name === "id") {
      made.scope = "row";
      const open = element("button", text(i));
      open.type = "button";
      open.dir = "auto";
      open.addEventListener("click", () => view(i));
      made.append(open);
    } else {
      made.textContent = text(i) || NA;
      if (name === "group") made.dir = "auto";
    }
    return made;
  }

  function draw() {
    const size = Number($("size").value), pages = Math.max(1, Math.ceil(rows.length / size));
    page = Math.min(page, pages - 1);
    $("table").tBodies[0].replaceChildren(...rows.slice(page * size, (page + 1) * size).map((i) => {
      const row = element("tr", undefined, data.flagged[i] === "1" ? "flagged" : "");
      row.append(...shown.map((column) => cell(i, column)));
      return row;
    }));
    $("page").textContent = `Page ${page + 1} of ${pages}`;
    $("first").disabled = $("previous").disabled = page === 0;
    $("next").disabled = $("last").disabled = page === pages - 1;
    const part = n < data.total ? ` (the ${n} with the highest scores of ${data.total})` : "";
    $("count").textContent = `${rows.length} of ${n} records${part}`;
  }
  function refresh() { rows = chosen(); sort(); page = 0; draw(); }
  function turn(to) { page = Math.max(0, to); draw(); }

  const head = element("tr");
  for (const [name, title, , , kind] of shown) {
    const header = element("th", undefined, kind), button = element("button", title);
    header.scope = "col";
    button.type = "button";
    button.append(element("span"));
    button.querySelector("span").setAttribute("aria-hidden", "true");
    button.addEventListener("click", () => {
      rising = sortBy === name ? !rising : ["id", "kind", "group", "p", "q", "decision"].includes(name);
      sortBy = name;
      sort(); page = 0; draw();
    });
    header.append(button);
    head.append(header);
    headings[name] = header;
  }
  $("table").tHead.append(head);
  document.querySelector(".group-only").hidden = !hasGroups;
  if (!hasGroups) document.querySelector(".group-only").style.display = "none";
  $("controls").addEventListener("input", refresh);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", () => setTimeout(refresh));
  document.querySelectorAll("button.group-records").forEach((button) => button.addEventListener("click", () => {
    $("controls").reset();
    $("f-group").value = `"${button.dataset.group}"`;
    refresh();
    $("records").scrollIntoView();
    $("f-group").focus({ preventScroll: true });
  }));
  $("size").addEventListener("change", () => turn(0));
  $("first").addEventListener("click", () => turn(0));
  $("previous").addEventListener("click", () => turn(page - 1));
  $("next").addEventListener("click", () => turn(page + 1));
  $("last").addEventListener("click", () => turn(Infinity));

  // ---- columns out of sight ----
  // Where a table is wider than the screen a line above it says so until its last column is in view.
  document.querySelectorAll(".scroll").forEach((box) => {
    const cue = element("p", "more columns →", "scroll-cue");
    cue.setAttribute("aria-hidden", "true"); // the region itself is named and takes the keyboard
    cue.hidden = true;
    box.before(cue);
    const look = () => {
      const more = box.scrollLeft + box.clientWidth < box.scrollWidth - 1;
      box.classList.toggle("more-right", more);
      cue.hidden = !more;
    };
    box.addEventListener("scroll", look, { passive: true });
    const watch = new ResizeObserver(look);
    watch.observe(box);
    watch.observe(box.querySelector("table"));
  });

  // ---- export ----
  $("export").addEventListener("click", () => {
    // A leading quote keeps spreadsheets from reading a hostile id as a formula.
    const quote = (text) => `"${text.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
    const plain = (v) => (Number.isNaN(v) ? "" : String(Number(v.toPrecision(6))));
    const lines = rows.map((i) => [
      quote(data.id[i]), kindNames[data.kind[i]], quote(groupOf(i)), columns.tokens[i], plain(columns.score[i]),
      plain(columns.p[i]), plain(columns.q[i]), data.flagged[i], quote(reasonOf(i)),
    ].join(","));
    const text = ["id,kind,group,tokens,score,p_value,q_value,flagged,reason", ...lines].join("\r\n") + "\r\n";
    const link = element("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
    link.download = "records.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // ---- one record ----
  const NO_SHARE = 255, usual = data.bands.usual, bandShares = unpack(data.bands.percent, Uint8Array);
  const thirds = { f: "first", m: "middle", l: "last" };
  const bandNames = ["lowest 50 %", "next 40 %", "next 9 %", "highest 1 %"];
  const strips = data.strips, where = new Map();
  const values = {};
  if (strips) {
    let start = 0;
    strips.records.forEach((record, at) => { where.set(record, { at, start, count: strips.counts[at] }); start += strips.counts[at]; });
    values.difference = unpack(strips.difference, Int16Array);
    if (strips.attribution) values.attribution = unpack(strips.attribution, Int16Array);
  }
  $("r-by-attribution").hidden = !values.attribution;
  let open = null;

  const explanations = {
    difference: "Reference loss minus target loss of each token, in nats: how much more likely fine-tuning made it.",
    attribution: "How much each token adds to the classifier's logit (integrated gradients).",
  };
  const percent = (share) => {
    const found = 100 * share;
    const digits = found > 99 && found < 100 ? Math.min(found, 99.9).toFixed(1) : found >= 10 ? found.toFixed(0) : Number(found.toPrecision(2));
    return `${digits}\u00a0%`;
  };
  const signed = (v) => (v > 0 ? "+" : v < 0 ? "−" : "") + Math.abs(v / MILLI).toFixed(3);

  function meter(name, share, said) {
    const line = element("div"), bar = element("span", undefined, "meter"), fill = element("i");
    fill.style.setProperty("--v", share);
    bar.append(fill);
    line.append(element("span", name), bar, element("span", said));
    return line;
  }

  function view(i) {
    open = i;
    $("r-title").textContent = data.id[i];
    const facts = [["Kind", kindNames[data.kind[i]]], ["Decision", decision(i)], ["Score", number(columns.score[i], 4)],
      ["p", number(columns.p[i])], ["q", number(columns.q[i])], ["Tokens", String(columns.tokens[i])]];
    if (group[i]) facts.push(["Group", groupOf(i)]);
    if (reason[i]) facts.push(["Why", reasonOf(i)]);
    $("r-facts").replaceChildren(...facts.map(([title, text]) => {
      const fact = element("div"), value = element("dd", text);
      value.dir = "auto";
      fact.append(element("dt", title), value);
      return fact;
    }));
    $("r-attacks").replaceChildren(...Object.entries(above).map(([name, shares]) => {
      const known = shares[i] <= SHARES, share = shares[i] / SHARES;
      return meter(name, known ? share : 0, known ? percent(share) : NA);
    }));
    bands(i);
    const found = where.has(i);
    $("r-strip").hidden = !found;
    $("r-none").hidden = found;
    $("r-none").textContent = columns.tokens[i] === 0 ? "No token of this text could be scored."
      : strips ? `Single tokens are kept only for the ${where.size} records with the highest scores; this is not one of them.`
      : "Single tokens are not shown, because their numbers reveal the text. An audit with --reveal shows them.";
    if (found) strip();
    if (!$("record").open) $("record").showModal();
    $("r-title").focus();
    $("record").scrollTop = 0;
  }

  function bands(i) {
    const shares = Array.from(bandShares.subarray(i * usual.length, (i + 1) * usual.length));
    const known = shares[0] !== NO_SHARE;
    $("r-bands-part").hidden = !known;
    if (!known) return;
    $("r-bands").replaceChildren(...shares.map((share, band) => meter(bandNames[band], share / 100, `${share} % (usual: ${usual[band]} %)`)).reverse());
    const third = thirds[data.bands.third[i]];
    $("r-third").textContent = third === undefined ? "" : `It stands out most in its ${third} third.`;
  }

  function strip() {
    const { at, start, count } = where.get(open);
    const by = document.querySelector("input[name=by]:checked").value, list = values[by].subarray(start, start + count);
    const words = strips.words[at];
    const largest = Math.max(1, ...list.map(Math.abs));
    $("r-explain").textContent = explanations[by];
    $("r-cells").replaceChildren(...Array.from(list, (v, t) => {
      const made = element("span", undefined, `cell ${v > 0 ? "up" : v < 0 ? "down" : ""}`);
      const inner = element("span", words[t]);
      inner.dir = "auto";
      made.style.setProperty("--v", (Math.abs(v) / largest).toFixed(3));
      made.title = `position ${t + 1}: ${signed(v)}`;
      made.append(inner);
      return made;
    }));
    const top = Array.from(list, (v, t) => [v, t + 1]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    $("r-cells").setAttribute("aria-label",
      `${count} tokens, ${list.filter((v) => v > 0).length} are evidence for membership, most of all positions ${top.map(([v, t]) => `${t} (${signed(v)})`).join(", ")}`);
    const names = Object.keys(values), headRow = element("tr");
    headRow.append(...["Position", "Token", ...names.map((name) => ({ difference: "Reference − target loss", attribution: "Classifier" })[name])]
      .map((text) => { const header = element("th", text); header.scope = "col"; return header; }));
    $("r-table").tHead.replaceChildren(headRow);
    $("r-table").tBodies[0].replaceChildren(...Array.from({ length: count }, (_, t) => {
      const row = element("tr");
      const word = element("td", words[t]);
      word.dir = "auto";
      row.append(element("td", String(t + 1)), word, ...names.map((name) => element("td", signed(values[name][start + t]))));
      return row;
    }));
  }
  document.querySelectorAll("input[name=by]").forEach((input) => input.addEventListener("change", strip));
  $("r-close").addEventListener("click", () => $("record").close());
  $("record").addEventListener("click", (event) => { if (event.target === $("record")) $("record").close(); });

  refresh();
})();
