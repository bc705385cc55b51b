"use strict";
// The browser of prompts. The data are gzipped JSON in the page; only the rows of the list that are in view exist.
const ROW = 46;
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null));
  return node;
};
const known = (value) => value !== null && value !== undefined;
const number = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace("-", "\u2212") : "\u2013");
const signed = (value, digits = 3) => (known(value) ? (value >= 0 ? "+" : "") + number(value, digits) : "");
const mean = (values) => {
  const kept = values.filter(known);
  return kept.length ? kept.reduce((sum, value) => sum + value, 0) / kept.length : null;
};

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
const ENDS = { stop: "its own end", stop_string: "a stop string", length: "the length limit" };

async function load() {
  const bytes = Uint8Array.from(atob($("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// a prompt's gain of one label over its baseline, over the seeds that both have; `pick` reads a number off a row
function gain(entry, label, base, pick) {
  const own = entry.rows.filter((row) => row.label === label);
  return mean(own.map((row) => {
    const other = entry.rows.find((one) => one.label === base && one.seed === row.seed);
    return other && known(pick(row)) && known(pick(other)) ? pick(row) - pick(other) : null;
  }));
}

class Browser {
  constructor(data) {
    this.data = data;
    this.shown = data.prompts;
    this.chosen = null;
    this.words = [];
    this.texts = new Map();
    this.controls();
    this.refresh();
    const wanted = decoded(location.hash.slice(1));
    const found = this.shown.find((entry) => entry.id === wanted);
    this.open(found || this.shown[0], true, Boolean(found));
  }

  controls() {
    const { labels, baselines, judges } = this.data;
    const others = labels.map((name, i) => [name, i]).filter(([, i]) => !baselines.includes(i));
    for (const [name, i] of others) $("against").append(new Option(name, i));
    $("against").hidden = others.length < 2 || !baselines.length;
    if (others.length) $("against").value = others[others.length - 1][1];
    const orders = [["input", "input order"], ["high", "highest reward first"], ["low", "lowest reward first"]];
    if (baselines.length && others.length) {
      orders.push(["gain", "largest gain first"], ["loss", "largest loss first"]);
      judges.forEach((name, i) => orders.push([`judge${i}`, `largest loss in ${name} first`]));
    }
    for (const [value, text] of orders) $("order").append(new Option(text, value));
    const filters = [["all", "all prompts"], ["errors", "with an error"]];
    if (baselines.length && others.length) filters.push(["wins", "wins"], ["ties", "ties"], ["losses", "losses"]);
    for (const [value, text] of filters) $("filter").append(new Option(text, value));
    for (const id of ["against", "order", "filter"]) $(id).addEventListener("change", () => this.refresh());
    let timer = 0;
    $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.refresh(), 120); });
    $("list").addEventListener("scroll", () => this.paint());
    window.addEventListener("resize", () => this.paint());
    $("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const at = this.shown.indexOf(this.chosen) + step;
      this.open(this.shown[Math.min(Math.max(at, 0), this.shown.length - 1)], true);
    });
  }

  haystack(entry) {
    if (!this.texts.has(entry)) {
      const parts = [entry.id, entry.prompt, ...entry.rows.map((row) => `${row.response || ""}\n${row.error || ""}`)];
      this.texts.set(entry, parts.join("\n").toLowerCase());
    }
    return this.texts.get(entry);
  }

  refresh() {
    const label = Number($("against").value);
    const order = $("order").value;
    const filter = $("filter").value;
    this.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const judge = order.startsWith("judge") ? Number(order.slice(5)) : null;
    for (const entry of this.data.prompts) {
      const base = this.data.baselines[entry.dataset];
      entry.gain = known(base) && $("against").value ? gain(entry, label, base, (row) => row.reward) : null;
      entry.key = judge !== null ? gain(entry, label, base, (row) => row.judges[judge])
        : order === "gain" || order === "loss" ? entry.gain
        : order === "input" ? entry.order
        : mean(entry.rows.map((row) => row.reward));
    }
    const tie = this.data.tie;
    const keep = {
      all: () => true,
      errors: (entry) => entry.rows.some((row) => row.error),
      wins: (entry) => known(entry.gain) && entry.gain > tie,
      ties: (entry) => known(entry.gain) && Math.abs(entry.gain) <= tie,
      losses: (entry) => known(entry.gain) && entry.gain < -tie,
    }[filter];
    const falling = order === "gain" || order === "high" ? -1 : 1;
    this.shown = this.data.prompts
      .filter((entry) => keep(entry) && this.words.every((word) => this.haystack(entry).includes(word)))
      .sort((a, b) => (known(b.key) - known(a.key)) || falling * (a.key - b.key) || a.order - b.order);
    const total = this.data.prompts.length;
    $("count").textContent = (this.shown.length === total ? "" : `${this.shown.length.toLocaleString("en")} of `) + count(total, "prompt");
    const against = $("against").value ? this.data.labels[label] : "";
    const base = this.data.baselines.find(known);
    $("measure").textContent = against && known(base) ? `${against} over ${this.data.labels[base]}` : "mean reward";
    $("space").style.height = `${this.shown.length * ROW}px`;
    $("list").scrollTop = 0;
    this.paint();
    if (this.chosen) this.detail();
  }

  paint() {
    const first = Math.max(0, Math.floor($("list").scrollTop / ROW) - 5);
    const last = Math.min(this.shown.length, first + Math.ceil($("list").clientHeight / ROW) + 10);
    $("space").replaceChildren(...this.shown.slice(first, last).map((entry, i) => {
      const failed = entry.rows.some((row) => row.error);
      const mark = known(entry.gain) ? signed(entry.gain) : failed ? "error" : number(mean(entry.rows.map((r) => r.reward)));
      const tone = known(entry.gain) && Math.abs(entry.gain) > this.data.tie ? (entry.gain > 0 ? "better" : "worse") : "";
      const item = make("div", { className: "item" },
        make("b", { textContent: entry.prompt.trim().slice(0, 160) || "(empty)" }),
        make("small", { textContent: failed ? `${entry.id} \u00b7 error` : entry.id }),
        make("i", { textContent: mark, className: failed && !known(entry.gain) ? "worse" : tone }));
      item.style.top = `${(first + i) * ROW}px`;
      item.id = `option-${first + i}`;
      const facts = { role: "option", "aria-selected": entry === this.chosen, "aria-setsize": this.shown.length, "aria-posinset": first + i + 1 };
      for (const [name, value] of Object.entries(facts)) item.setAttribute(name, value);
      item.addEventListener("click", () => this.open(entry, false));
      return item;
    }));
    const at = this.shown.indexOf(this.chosen);
    if (at >= first && at < last) $("list").setAttribute("aria-activedescendant", `option-${at}`);
    else $("list").removeAttribute("aria-activedescendant");
  }

  open(entry, scroll, named = true) {
    this.chosen = entry || null;
    if (entry && named) history.replaceState(null, "", `#${encodeURIComponent(entry.id)}`);
    if (entry && scroll) {
      const top = this.shown.indexOf(entry) * ROW;
      const list = $("list");
      if (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
    }
    this.paint();
    this.detail();
    $("detail").scrollTop = 0;
  }

  detail() {
    const entry = this.chosen;
    if (!entry) {
      $("detail").replaceChildren(make("p", { className: "note", textContent: "No prompt." }));
      return;
    }
    const many = new Set(entry.rows.map((row) => row.seed)).size > 1;
    const base = this.data.baselines[entry.dataset];
    const cards = entry.rows.map((row) => this.card(entry, row, base, many));
    $("detail").replaceChildren(
      make("p", { className: "meta", textContent: entry.id }),
      make("div", { className: "prompt text", tabIndex: 0 }, ...this.marked(entry.prompt.trim())),
      make("div", { className: "cards" }, ...cards));
  }

  card(entry, row, base, many) {
    const { labels, colours, judges } = this.data;
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = colours[row.label];
    const title = make("h3", {}, swatch, labels[row.label] + (many ? `, seed ${row.seed}` : ""));
    if (row.error) return make("div", { className: "card" }, title, make("div", { className: "error text", textContent: row.error }));
    const other = entry.rows.find((one) => one.label === base && one.seed === row.seed);
    const over = other && other !== row && known(other.reward) && known(row.reward) ? row.reward - other.reward : null;
    const facts = [["reward", number(row.reward)], ["gain", signed(over)]];
    judges.forEach((name, i) => facts.push([name, known(row.judges[i]) ? number(row.judges[i]) : ""]));
    facts.push(["samples", row.samples], ["tokens", row.tokens], ["ended by", ENDS[row.finish] || row.finish], ["failed samples", row.failed || ""]);
    const numbers = facts.filter(([, value]) => known(value) && value !== "")
      .map(([name, value]) => make("div", {}, make("span", { textContent: `${name} ` }), String(value)));
    return make("div", { className: "card" }, title, make("div", { className: "numbers" }, ...numbers),
      make("div", { className: "response text" }, ...this.marked(row.response || "")), this.trace(row));
  }

  // best, mean and highest reward over iterations; its title tells the numbers
  trace(row) {
    const all = [...row.best, ...row.mean, ...row.max].filter(known);
    if (row.best.length < 2 || !all.length) return null;
    const low = Math.min(...all), high = Math.max(...all), steps = row.best.length;
    const x = (k) => 4 + (k / (steps - 1)) * 292;
    const y = (value) => 68 - ((value - low) / (high - low || 1)) * 62;
    const line = (values, style) => {
      const points = values.map((value, k) => (known(value) ? `${x(k).toFixed(1)},${y(value).toFixed(1)}` : null)).filter(known);
      const node = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      for (const [name, value] of Object.entries({ points: points.join(" "), fill: "none", stroke: "currentColor",
        "vector-effect": "non-scaling-stroke", ...style })) node.setAttribute(name, value);
      return node;
    };
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 300 74");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "Rewards over iterations");
    const rows = row.best.map((best, k) => `${row.seen[k]} samples: best ${number(best)}, mean ${number(row.mean[k])}`
      + `${known(row.ess[k]) ? `, ESS ${number(row.ess[k], 1)}` : ""}${row.norm[k] ? `, |U| ${number(row.norm[k], 1)}` : ""}`);
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = rows.join("\n");
    const colour = this.data.colours[row.label];
    svg.append(title, line(row.max, { opacity: 0.35, "stroke-width": 1 }), line(row.mean, { stroke: colour, "stroke-width": 1.2, "stroke-dasharray": "4 3" }),
      line(row.best, { stroke: colour, "stroke-width": 2 }));
    const caption = make("div", { className: "meta", textContent: `${number(low, 2)} to ${number(high, 2)} over ${steps} iterations: best (solid), mean (dashed), highest (thin)` });
    return make("div", {}, svg, caption);
  }

  // the text as nodes, search words marked
  marked(text) {
    if (!this.words.length) return [text];
    const pattern = new RegExp(`(${this.words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
    return text.split(pattern).map((part, i) => (i % 2 ? make("mark", { textContent: part }) : part));
  }
}

$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling.textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
  });
}
const asked = new URLSearchParams(location.search).get("theme");
if (asked === "light" || asked === "dark") document.documentElement.dataset.theme = asked;

load().then((data) => {
  window.report = new Browser(data);
  document.body.dataset.ready = "true";
}).catch((error) => {
  $("detail").textContent = `The responses could not be unpacked (${error}). A browser of 2023 or later is needed.`;
});
