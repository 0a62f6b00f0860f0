"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");
// Plotly takes some markup for what it is, links among it
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// an element with attributes and children; what is text stays text, so that no name becomes markup
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function problem(text) {
  const place = document.getElementById("problem");
  place.hidden = false;
  place.textContent = text;
}

// ---------------------------------------------------------------- tables

function sortBy(header) {
  const row = header.parentElement, body = header.closest("table").tBodies[0];
  const at = [...row.children].indexOf(header), isNumber = header.classList.contains("n");
  const before = header.getAttribute("aria-sort");
  const rises = before === "none" ? !isNumber || header.textContent.trim() === "rank" : before === "descending";
  const value = (line) => {
    const cell = line.cells[at], number = Number(cell.dataset.number);
    return isNumber ? (Number.isNaN(number) ? -Infinity : number) : cell.textContent.trim();
  };
  const compare = (a, b) => (isNumber ? a - b || 0 : a.localeCompare(b, undefined, { numeric: true }));
  const lines = [...body.rows].sort((a, b) => (rises ? 1 : -1) * compare(value(a), value(b)));
  body.append(...lines);
  for (const other of row.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", rises ? "ascending" : "descending");
}

for (const button of document.querySelectorAll("table.sortable th button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

// ---------------------------------------------------------------- two networks

// orange for less, blue for more: the colour-blind tell them apart; the paper stands between
function tint(share, isMore) {
  const strong = isMore ? (dark.matches ? "#56b4e9" : "#0173b2") : (dark.matches ? "#de8f05" : "#c65f00");
  return `color-mix(in srgb, ${strong} ${Math.round(12 + 68 * share)}%, var(--card))`;
}

function matrix(title, values, signed) {
  const off = values.flatMap((row, i) => row.filter((_, j) => i !== j)).map(Math.abs), top = Math.max(1, ...off);
  const head = make("tr", {}, make("th", { title: "true digit, downwards; predicted digit, to the right" }, "↓ →"));
  for (let digit = 0; digit < 10; digit++) head.append(make("th", { scope: "col" }, String(digit)));
  const table = make("table", { class: "matrix", "aria-label": `${title}, true by predicted digit` }, head);
  values.forEach((row, i) => {
    const line = make("tr", {}, make("th", { scope: "row" }, String(i)));
    row.forEach((value, j) => {
      const text = value ? (signed && value > 0 ? "+" : "") + String(value).replace("-", "−") : "";
      const cell = make("td", { title: `true ${i}, predicted ${j}: ${value}` }, text);
      if (i === j) cell.className = "diagonal";
      else if (value) {
        // of mistakes fewer is better: b's fewer ones are blue in the difference
        cell.style.background = tint(Math.abs(value) / top, signed ? value < 0 : true);
        if (Math.abs(value) / top > 0.6) cell.style.color = dark.matches ? "#000" : "#fff";
      }
      line.append(cell);
    });
    table.append(line);
  });
  return make("div", {}, make("h3", {}, title), table);
}

function wrongOf(network) {
  return network.confusion.reduce((sum, row, i) => sum + row.reduce((rest, n, j) => rest + (i === j ? 0 : n), 0), 0);
}

function mistake(image, at, a, b) {
  const says = [a, b].map((network) => `${network.says[at]} (${network.sure[at]} %)`);
  const picture = image.png
    ? make("img", { src: `data:image/png;base64,${image.png}`, alt: `image ${image.index}, a ${image.label}` })
    : make("div", { class: "blank" });
  const caption = make("figcaption", {}, `true ${image.label}`, make("br"), `a ${says[0]}`, make("br"), `b ${says[1]}`);
  return make("figure", { title: `image ${image.index}` }, picture, caption);
}

function compare() {
  const [a, b] = ["a", "b"].map((key) => data.compared[Number(document.getElementById(key).value)]);
  const difference = a.confusion.map((row, i) => row.map((value, j) => b.confusion[i][j] - value));
  const titles = [`a: ${wrongOf(a)} wrong`, `b: ${wrongOf(b)} wrong`, "b minus a (blue: b has fewer)"];
  document.getElementById("matrices").replaceChildren(
    matrix(titles[0], a.confusion), matrix(titles[1], b.confusion), matrix(titles[2], difference, true));
  const groups = [["Only a is wrong", true, false], ["Only b is wrong", false, true], ["Both are wrong", true, true]];
  const place = document.getElementById("mistakes");
  place.replaceChildren(make("p", { class: "soft" },
    `The ${data.most} mistakes that each network was surest of, with the predictions of a and b and their confidence.`));
  for (const [title, isA, isB] of groups) {
    const found = data.images.map((image, at) => [image, at]).filter(([image, at]) =>
      (a.says[at] !== image.label) === isA && (b.says[at] !== image.label) === isB);
    const shown = make("div", { class: "mistakes" }, ...found.map(([image, at]) => mistake(image, at, a, b)));
    place.append(make("h3", {}, `${title} (${found.length})`), shown);
  }
}

if (data.compared.length) {
  if (data.compared.length === 1) document.getElementById("b").value = "0";
  for (const key of ["a", "b"]) document.getElementById(key).addEventListener("change", compare);
  dark.addEventListener("change", compare);
  compare();
}

// ---------------------------------------------------------------- pictures

// seaborn's "colorblind"
const COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133",
  "#56b4e9"];

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function ownPictures() {
  const figures = [];
  for (const metric of ["val_accuracy", "val_loss"]) {
    const lines = data.curves.map((curve) => ({
      x: curve.epoch, y: curve[metric], name: plain(curve.name.length > 60 ? curve.name.slice(0, 59) + "…" : curve.name),
      mode: "lines+markers", hovertemplate: `epoch %{x}: %{y:.4f}<extra>trial ${plain(curve.name.split(":")[0])}</extra>`,
    }));
    const axes = { xaxis: { title: { text: "epoch" }, dtick: 1 }, yaxis: { title: { text: metric } } };
    const longest = Math.max(0, ...data.curves.map((curve) => curve.epoch.length));
    if (longest > 12) delete axes.xaxis.dtick;
    if (metric === "val_accuracy") axes.yaxis.tickformat = ".1%";
    figures.push({ name: metric, figure: { data: lines, layout: { ...axes, hovermode: "closest" } } });
  }
  if (data.confirmed.length) figures.push({ name: "confirmed", figure: confirmed() });
  return figures;
}

function confirmed() {
  const rows = [...data.confirmed].reverse();
  const name = (row) => (row.winner ? "★ " : "") + "trial " + plain(row.name.split(":")[0]);
  const seeds = {
    x: rows.flatMap((row) => row.values), y: rows.flatMap((row) => row.values.map(() => name(row))), mode: "markers",
    name: "one fresh seed", marker: { symbol: "circle-open", size: 8, color: "#949494" },
  };
  const means = {
    x: rows.map((row) => row.mean), y: rows.map(name), mode: "markers", name: "mean, 95 % interval",
    marker: { size: 11, symbol: rows.map((row) => (row.winner ? "star" : "diamond")), color: "#0173b2" },
    error_x: {
      type: "data", symmetric: false, array: rows.map((row) => row.high - row.mean),
      arrayminus: rows.map((row) => row.mean - row.low), color: "#0173b2",
    },
  };
  const searched = {
    x: rows.map((row) => row.sweep_val_accuracy), y: rows.map(name), mode: "markers", name: "in the search",
    marker: { size: 10, symbol: "x", color: "#de8f05" },
  };
  const axes = { xaxis: { title: { text: "validation accuracy" }, tickformat: ".1%" }, yaxis: { automargin: true } };
  return { data: [seeds, searched, means], layout: { ...axes, height: 170 + 50 * rows.length } };
}

function draw(place, figure) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
  const template = { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: COLOURS, xaxis: axis, yaxis: axis,
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--grey"), activecolor: colour("--accent") },
    colorscale: { sequential: "Blues", diverging: "RdBu" },
  } };
  const layout = { ...structuredClone(figure.layout), template, autosize: true, margin: { l: 60, r: 20, t: 30, b: 50 } };
  const isLong = figure.data.filter((trace) => trace.showlegend !== false && trace.name).length > 3;
  if (narrow.matches || isLong) layout.legend = { ...layout.legend, orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" };
  layout.height = (layout.height || 440) + (isLong ? (narrow.matches ? 25 : 9) * figure.data.length * (layout.showlegend === false ? 0 : 1) : 0);
  if (layout.height > 1100) layout.height = 1100;
  const options = { displaylogo: false, responsive: true, displayModeBar: narrow.matches ? false : "hover" };
  // many panels side by side cannot be told apart on a phone: there they scroll
  const panels = Object.keys(layout).filter((key) => key.startsWith("xaxis")).length;
  const isWide = panels > 2 || (layout.xaxis?.ticktext || []).length > 4;
  place.style.width = narrow.matches && isWide ? "860px" : "";
  return Plotly.react(place, structuredClone(figure.data), layout, options);
}

async function drawAll() {
  const script = make("script");
  script.textContent = await unpack("packed-plotly");
  document.head.append(script);
  const all = [...ownPictures(), ...JSON.parse(await unpack("packed-drawn")).pictures];
  const places = new Map();
  for (const picture of all) {
    const place = document.querySelector(`[data-plot="${picture.name}"]`);
    if (place) places.set(place, picture.figure);
  }
  const seen = new Set();
  // far down the page nothing is drawn before it is looked for: a phone draws one picture at a time
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting && !seen.has(entry.target))) {
      seen.add(entry.target);
      draw(entry.target, places.get(entry.target)).catch((fault) => problem(`A picture is not drawn: ${fault.message}`));
    }
  }, { rootMargin: "600px" });
  for (const place of places.keys()) watcher.observe(place);
  for (const change of [dark, narrow])
    change.addEventListener("change", () => { for (const place of seen) draw(place, places.get(place)); });
}

drawAll().catch((fault) => problem(`The pictures cannot be drawn by this browser: ${fault.message}`));
