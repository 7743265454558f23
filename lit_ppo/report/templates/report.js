// The page's own script: theme, charts, zoom of the price chart. Data comes from the JSON block, text is never parsed
// as HTML, and nothing is fetched.
"use strict";
(async () => {
  const root = document.documentElement;
  const problems = [];
  const note = (text) => { problems.push(String(text)); root.dataset.problems = problems.length; };
  window.addEventListener("error", (event) => note(event.message));
  window.addEventListener("unhandledrejection", (event) => note(event.reason));
  window.addEventListener("securitypolicyviolation", (event) => note(event.violatedDirective + " " + event.blockedURI));

  // ---- theme -------------------------------------------------------------------------------------------------
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = window.localStorage.getItem("lit-ppo-theme"); } catch (error) { chosen = null; } // storage may be off
  const color = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  function setTheme(theme) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light colours" : "Dark colours";
    drawAll();
  }
  const first = chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
  root.dataset.theme = first; // before the charts are unpacked: no flash of the other one

  // ---- unpacking: data and plotly.js are gzip in base64 -------------------------------------------------------
  if (!window.DecompressionStream) {
    for (const chart of document.querySelectorAll(".chart")) chart.textContent = "This browser is too old to unpack the charts (it has no DecompressionStream).";
    return;
  }
  function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  const figures = JSON.parse(await unpack("figures"));
  if (Object.keys(figures).length) {
    const library = document.createElement("script");
    library.textContent = await unpack("plotly"); // runs because the page's policy has its hash
    document.head.append(library);
  }

  button.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    chosen = theme;
    try { window.localStorage.setItem("lit-ppo-theme", theme); } catch (error) { /* the choice lasts for this visit */ }
    setTheme(theme);
  });
  system.addEventListener("change", () => { if (chosen === null) setTheme(system.matches ? "dark" : "light"); });

  // ---- charts ------------------------------------------------------------------------------------------------
  const narrow = () => window.innerWidth <= 600;
  // A figure names its colours ("agent", "loss"); they become the theme's own here.
  function themed(value, key) {
    if (Array.isArray(value)) return key === "color" || key === "colors" ? value.map((v) => themed(v, "color")) : value.map((v) => themed(v));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
    if (typeof value === "string" && /color/.test(key || "") && /^[a-z]+$/.test(value)) return color(value) || value;
    return value;
  }
  function layoutOf(figure) {
    const axis = { gridcolor: color("line"), linecolor: color("line"), zerolinecolor: color("flat"), automargin: true, fixedrange: narrow() };
    const layout = themed(figure.layout);
    for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) {
      layout[name] = { ...axis, ...layout[name] };
      if (layout[name].title) layout[name].title = { ...layout[name].title, font: { size: narrow() ? 11 : 12, color: color("soft") } };
    }
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("ink"), family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13 },
      margin: { l: narrow() ? 44 : 64, r: 12, t: 12, b: 40 }, hovermode: "closest",
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, ...layout,
    };
  }
  const options = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false };
  function draw(name) {
    const figure = name === "price" ? priceFigure() : figures[name];
    return Plotly.react(document.getElementById("chart-" + name), themed(figure.data), layoutOf(figure), options);
  }
  const names = Object.keys(figures).filter((name) => document.getElementById("chart-" + name));
  function drawAll() {
    return Promise.all(names.map(draw)).then(() => { root.dataset.drawn = names.length; }, (error) => note(error));
  }

  // ---- price: every bar is here, and only what the window can show is drawn ------------------------------------
  const price = figures.price;
  let view = null; // [first row, row after the last] that is drawn
  let times, prices, positions;
  function decode(text, Type) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Type(bytes.buffer);
  }
  if (price) {
    prices = decode(price.prices, Float32Array);
    positions = decode(price.positions, Float32Array);
    times = Float64Array.from(decode(price.times, Int32Array), (minutes) => minutes * 60000);
    view = [0, times.length];
  }
  // Rows after which the market was closed for longer than four usual bars.
  const closed = [];
  if (price) {
    const steps = Array.from(times.subarray(1), (time, i) => time - times[i]);
    const usual = [...steps].sort((a, b) => a - b)[steps.length >> 1];
    steps.forEach((step, i) => { if (step > 4 * usual) closed.push(i); });
  }
  // Lines end there and begin anew where that is wider than a hundredth of the view; narrower ones would dash the line.
  function withGaps(rows) {
    const least = (times[rows[rows.length - 1]] - times[rows[0]]) / 100;
    const gaps = closed.filter((i) => times[i + 1] - times[i] > least);
    const found = [];
    let next = 0;
    rows.forEach((row, i) => {
      found.push(row);
      while (next < gaps.length && gaps[next] < row) next++;
      if (i + 1 < rows.length && next < gaps.length && gaps[next] < rows[i + 1]) found.push(null);
    });
    return found;
  }
  function lowerBound(sorted, value) {
    let low = 0, high = sorted.length;
    while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
    return low;
  }
  // Rows to draw: all when they are few, else lowest and highest price and the first row of each bucket.
  function rowsToDraw(from, to, most) {
    const rows = [];
    if (to - from <= most) { for (let i = from; i < to; i++) rows.push(i); return rows; }
    const step = (to - from) / (most / 3);
    for (let start = from; start < to - 0.5; start += step) {
      const first = Math.floor(start), end = Math.min(to, Math.floor(start + step));
      let low = first, high = first;
      for (let i = first; i < end; i++) { if (prices[i] < prices[low]) low = i; if (prices[i] > prices[high]) high = i; }
      rows.push(...[...new Set([first, low, high])].sort((a, b) => a - b));
    }
    return rows;
  }
  const closes = (trades) => ({
    type: "scatter", mode: "markers", name: "closes", x: trades.map((t) => t[1]), y: trades.map((t) => t[3]),
    marker: { symbol: "x-thin", size: 7, color: "ink", line: { width: 1.5, color: "ink" } },
    text: trades.map((t) => (100 * t[5]).toFixed(2) + " %"),
    hovertemplate: "%{x|%Y-%m-%d %H:%M}<br>closes at %{y}, result %{text}<extra></extra>",
  });
  function priceFigure() {
    const [from, to] = view;
    const rows = withGaps(rowsToDraw(from, to, narrow() ? 900 : 2400));
    const at = (values) => rows.map((i) => (i === null ? null : values[i]));
    const x = at(times);
    const data = [
      { type: "scatter", mode: "lines", name: "price", x, y: at(prices), line: { color: "flat", width: 1.2 }, hovertemplate: "%{x|%Y-%m-%d %H:%M}<br>%{y}<extra></extra>" },
      { type: "scatter", mode: "lines", name: "position", x, y: at(positions), yaxis: "y2", line: { color: "agent", width: 1, shape: "hv" }, fill: "tozeroy", hovertemplate: "%{x|%Y-%m-%d %H:%M}<br>position %{y}<extra></extra>", showlegend: false },
    ];
    let shown = 0;
    const first = times[from], last = times[to - 1];
    const inside = price.trades.filter((trade) => trade[0] <= last && trade[1] >= first);
    if (inside.length <= 150) {
      if (inside.length) data.push(closes(inside));
      const kinds = [["long", "triangle-up", "gain", (t) => t[4] > 0], ["short", "triangle-down", "loss", (t) => t[4] < 0]];
      for (const [label, symbol, tint, keep] of kinds) {
        const kept = inside.filter(keep);
        if (kept.length) data.push({ type: "scatter", mode: "markers", name: "opens " + label, x: kept.map((t) => t[0]), y: kept.map((t) => t[2]), marker: { symbol, size: 10, color: tint }, hovertemplate: "%{x|%Y-%m-%d %H:%M}<br>opens " + label + " at %{y}<extra></extra>" });
      }
      shown = inside.length;
    }
    const status = document.getElementById("price-status");
    const day = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");
    status.textContent = `${day(first)} to ${day(last)} UTC: ${(to - from).toLocaleString("en")} bars, ${inside.length.toLocaleString("en")} trades` + (inside.length && !shown ? " (zoom in to see each of them)" : "");
    return { data, layout: {
      height: narrow() ? 380 : 460, uirevision: from + ":" + to,
      xaxis: { type: "date", range: [first, last], anchor: "y2" },
      yaxis: { domain: [0.27, 1], title: { text: "price" } }, yaxis2: { domain: [0, 0.2], title: { text: "position" }, fixedrange: true },
    } };
  }
  function show(from, to) {
    const width = Math.max(20, Math.min(times.length, Math.round(to - from)));
    from = Math.max(0, Math.min(times.length - width, Math.round(from)));
    if (from === view[0] && from + width === view[1]) return;
    view = [from, from + width];
    draw("price").catch(note);
  }
  if (price) {
    const actions = {
      in: ([a, b]) => [a + (b - a) / 4, b - (b - a) / 4], out: ([a, b]) => [a - (b - a) / 2, b + (b - a) / 2],
      earlier: ([a, b]) => [a - (b - a) / 2, b - (b - a) / 2], later: ([a, b]) => [a + (b - a) / 2, b + (b - a) / 2],
      all: () => [0, times.length],
    };
    for (const [name, action] of Object.entries(actions)) document.getElementById("price-" + name).addEventListener("click", () => show(...action(view)));
  }

  setTheme(first);
  if (price) {
    document.getElementById("chart-price").on("plotly_relayout", (change) => {
      if (change["xaxis.autorange"]) return show(0, times.length);
      if (change["xaxis.range[0]"] === undefined) return undefined;
      const at = (value) => (typeof value === "number" ? value : Date.parse(value.replace(" ", "T") + "Z"));
      return show(lowerBound(times, at(change["xaxis.range[0]"])), lowerBound(times, at(change["xaxis.range[1]"])) + 1);
    });
  }
  let wasNarrow = narrow();
  window.addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); drawAll(); } });
})();
