"use strict";
// Draws the Pareto plot of a lessen report from the JSON in the page. No text of the data is ever parsed as markup.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 1056, HEIGHT = 520, BOX = { left: 70, right: 24, top: 26, bottom: 54 };
  const KIND = { "better": "better", "within margin": "within", "not enough data to say": "unsure", "worse": "worse" };
  const plot = document.getElementById("plot"), controls = document.getElementById("controls");
  const readout = document.getElementById("readout"), tip = element("div", { class: "tip" });
  tip.hidden = true;

  function element(name, attributes = {}, text) {
    const made = document.createElement(name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function shape(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  // -- words ------------------------------------------------------------------------------------------------
  const signed = (value, decimals) => {
    const text = Math.abs(value).toFixed(decimals);
    return Number(text) === 0 ? "0" : (value > 0 ? "+" : "\u2212") + text;
  };
  const between = (change) => change.low === null ? "no interval"
    : `[${signed(change.low, DATA.decimals)}, ${signed(change.high, DATA.decimals)}]`;
  const percent = (share) => `${+(100 * share).toPrecision(3)} %`;

  // -- state and scales -------------------------------------------------------------------------------------
  const state = {
    metric: DATA.primary in DATA.metrics ? DATA.primary : Object.keys(DATA.metrics)[0],
    cost: "stored_bytes" in DATA.costs ? "stored_bytes" : Object.keys(DATA.costs)[0],
    xscale: "log", yscale: "asinh", hidden: new Set(),
  };
  const SCALES = {
    log: (value) => Math.log(value),
    linear: (value) => value,
    asinh: (value) => Math.asinh(value / (2 * DATA.margin)),
  };
  const mapper = (scale, low, high, from, to) => {
    const start = SCALES[scale](low), span = SCALES[scale](high) - start || 1;
    return (value) => from + (SCALES[scale](value) - start) / span * (to - from);
  };
  const nice = (low, high) => {
    const found = [];
    for (let power = -9; power <= 13; power++) {
      for (const digit of [1, 2, 3, 5]) {
        const value = Number(`${digit}e${power}`);
        if (value >= low && value <= high * 1.0001) found.push(value);
      }
    }
    return found;
  };
  const spaced = (marks, map, gap) => {
    const kept = [];
    for (const mark of marks) if (kept.every((other) => Math.abs(map(mark) - map(other)) > gap)) kept.push(mark);
    return kept;
  };

  // Points that have both figures, gains first: `gain` is positive for better, whichever way the metric points.
  function placed() {
    const rows = [];
    for (const point of DATA.points) {
      const axis = point.axes[state.cost], change = point.differences[state.metric];
      if (!axis || !change || !point.families.some((name) => !state.hidden.has(name))) continue;
      const sign = change.up ? 1 : -1, ends = [change.low ?? change.value, change.high ?? change.value];
      rows.push({ point, axis, change, x: axis.x, gain: sign * change.value, sign,
        low: Math.min(sign * ends[0], sign * ends[1]), high: Math.max(sign * ends[0], sign * ends[1]) });
    }
    const cheaper = DATA.moreIsBetter.includes(state.cost) ? -1 : 1;
    const rivals = rows.map((row) => [cheaper * row.x, -row.gain]);
    if (rows.some((row) => row.axis.relative) || state.cost === "latency_ratio") rivals.push([cheaper, 0]);
    for (const row of rows) {
      const [x, loss] = [cheaper * row.x, -row.gain];
      row.front = !rivals.some(([a, b]) => a <= x && b <= loss && (a < x || b < loss));
    }
    return rows;
  }

  // -- drawing ----------------------------------------------------------------------------------------------
  function draw() {
    const rows = placed();
    plot.replaceChildren(tip);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", `${DATA.metrics[state.metric]} difference against ${DATA.costs[state.cost]}`);
    plot.prepend(svg);
    if (!rows.length) {
      shape(svg, "text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "No recipe has both figures.");
      return;
    }
    const relative = rows.some((row) => row.axis.relative) || state.cost === "latency_ratio";
    const margin = state.metric === DATA.primary ? DATA.margin : null;
    const frame = scales(rows, relative, margin);
    const taken = [];
    backdrop(svg, frame, rows[0].sign, margin, relative, taken);
    const front = rows.filter((row) => row.front).sort((a, b) => a.x - b.x);
    if (front.length > 1) stairs(svg, front, frame, taken);
    codecs(svg, rows, frame);
    if (relative) {
      shape(svg, "rect", { class: "origin", x: frame.x(1) - 5.5, y: frame.y(0) - 5.5, width: 11, height: 11 });
      taken.push([frame.x(1) - 8, frame.y(0) - 8, frame.x(1) + 8, frame.y(0) + 8]);
    }
    const marks = rows.map((row) => mark(svg, row, frame, taken));
    names(marks, frame, taken);
  }

  // Joins the rates of each codec, in the order of their cost.
  function codecs(svg, rows, frame) {
    for (const name of new Set(rows.map((row) => row.point.curve).filter((curve) => curve !== null))) {
      const line = rows.filter((row) => row.point.curve === name).sort((a, b) => a.x - b.x);
      const path = line.map((row, at) => `${at ? "L" : "M"}${frame.x(row.x)} ${frame.y(row.gain)}`).join("");
      if (line.length > 1) shape(svg, "path", { class: "codec", d: path });
    }
  }

  function scales(rows, relative, margin) {
    const xs = rows.flatMap((row) => [row.x, ...(row.axis.ends || [])]).concat(relative ? [1] : []);
    const low = Math.min(...xs), high = Math.max(...xs), log = state.xscale === "log" && low > 0;
    const stretch = Math.max(1.06, (high / low) ** 0.06), room = 0.06 * (high - low || high);
    const range = log ? [low / stretch, high * stretch] : [Math.max(0, low - room), high + room];
    const ys = rows.flatMap((row) => [row.low, row.high]).concat([0]).concat(margin ? [-margin, margin] : []);
    const squash = SCALES[state.yscale], spread = state.yscale === "asinh" ? (v) => 2 * DATA.margin * Math.sinh(v) : (v) => v;
    const bottom = squash(Math.min(...ys)), top = squash(Math.max(...ys)), pad = (top - bottom || 1) * 0.08;
    const gains = [spread(bottom - pad), spread(top + pad)];
    return {
      range, gains, log,
      x: mapper(log ? "log" : "linear", range[0], range[1], BOX.left, WIDTH - BOX.right),
      y: mapper(state.yscale, gains[0], gains[1], HEIGHT - BOX.bottom, BOX.top),
    };
  }

  function backdrop(svg, frame, sign, margin, relative, taken) {
    const right = WIDTH - BOX.right, floor = HEIGHT - BOX.bottom;
    if (margin) {
      shape(svg, "rect", { class: "band", x: BOX.left, y: BOX.top, width: right - BOX.left, height: frame.y(-margin) - BOX.top });
    }
    const reach = Math.max(-frame.gains[0], frame.gains[1]);
    const steps = state.yscale === "linear" ? even(frame.gains[0], frame.gains[1])
      : [0, ...nice(DATA.margin / 2, reach).flatMap((value) => [value, -value])];
    const shown = steps.filter((value) => value >= frame.gains[0] && value <= frame.gains[1]);
    for (const gain of spaced(shown, frame.y, 26)) {
      shape(svg, "line", { class: gain === 0 ? "zero" : "grid", x1: BOX.left, x2: right, y1: frame.y(gain), y2: frame.y(gain) });
      shape(svg, "text", { x: BOX.left - 10, y: frame.y(gain) + 4, "text-anchor": "end" }, signed(sign * gain, DATA.decimals));
    }
    taken.push([BOX.left, frame.y(0) - 1, right, frame.y(0) + 1]);
    const round = nice(frame.range[0], frame.range[1]);
    const marks = frame.log && round.length > 2 ? round : even(frame.range[0], frame.range[1]);
    for (const value of spaced(marks, frame.x, 58)) {
      shape(svg, "line", { class: "grid", x1: frame.x(value), x2: frame.x(value), y1: BOX.top, y2: floor });
      const text = state.cost === "latency_ratio" ? `${+value.toPrecision(3)}\u00d7` : relative ? percent(value) : String(+value.toPrecision(3));
      shape(svg, "text", { x: frame.x(value), y: floor + 20, "text-anchor": "middle" }, text);
    }
    const what = DATA.costs[state.cost] + (state.cost === "latency_ratio" ? ", compact / uncompressed" : relative ? ", share of the uncompressed model" : "");
    shape(svg, "text", { x: (BOX.left + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, what);
    shape(svg, "text", { x: BOX.left, y: 14 }, `${DATA.metrics[state.metric]} difference, better upwards`);
    if (margin) {
      const y = frame.y(-margin);
      shape(svg, "line", { class: "edge", x1: BOX.left, x2: right, y1: y, y2: y });
      shape(svg, "text", { class: "edge-name", x: right - 4, y: y + 15, "text-anchor": "end" }, `margin ${signed(-sign * margin, DATA.decimals)}`);
      taken.push([BOX.left, y - 1, right, y + 1], [right - 110, y, right, y + 18]);
    }
    budgets(svg, frame, sign, margin, right, floor, taken);
  }

  function even(low, high) {
    const raw = (high - low) / 7, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((digit) => digit * power).find((value) => value >= raw);
    const found = [];
    for (let count = Math.ceil(low / step); count * step <= high; count++) found.push(count * step);
    return found;
  }

  function budgets(svg, frame, sign, margin, right, floor, taken) {
    for (const gate of DATA.gates) {
      if (gate.name === state.cost) {
        const known = DATA.points.map((point) => point.axes[gate.name]).find((axis) => axis);
        const share = gate.relative || !known || !known.relative ? gate.limit : gate.limit / known.reference;
        if (share < frame.range[0] || share > frame.range[1]) continue;
        shape(svg, "line", { class: "budget", x1: frame.x(share), x2: frame.x(share), y1: BOX.top, y2: floor });
        shape(svg, "text", { x: frame.x(share) + 6, y: floor - 8 }, gate.text);
        taken.push([frame.x(share) - 1, BOX.top, frame.x(share) + 1, floor], [frame.x(share), floor - 20, frame.x(share) + 7 * gate.text.length, floor]);
      } else if (gate.name === state.metric && !(margin && Math.abs(Math.abs(gate.limit) - margin) < 1e-12)) {
        const y = frame.y(sign * gate.limit);
        if (y < BOX.top || y > floor) continue;
        shape(svg, "line", { class: "budget", x1: BOX.left, x2: right, y1: y, y2: y });
        shape(svg, "text", { x: BOX.left + 6, y: y - 5 }, gate.text);
      }
    }
  }

  function stairs(svg, front, frame, taken) {
    let path = `M${frame.x(front[0].x)} ${frame.y(front[0].gain)}`;
    for (let i = 1; i < front.length; i++) {
      const [x0, y0, x1, y1] = [frame.x(front[i - 1].x), frame.y(front[i - 1].gain), frame.x(front[i].x), frame.y(front[i].gain)];
      path += `H${x1}V${y1}`;
      taken.push([x0, y0 - 1, x1, y0 + 1], [x1 - 1, Math.min(y0, y1), x1 + 1, Math.max(y0, y1)]);
    }
    shape(svg, "path", { class: "step", d: path });
  }

  function mark(svg, row, frame, taken) {
    const [x, y, top, bottom] = [frame.x(row.x), frame.y(row.gain), frame.y(row.high), frame.y(row.low)];
    const kind = KIND[row.point.verdict];
    const group = shape(svg, "g", {
      class: `point p-${kind} ${row.front ? "on-front" : "dominated"}`, tabindex: "0", role: "img",
      "aria-label": spoken(row),
    });
    group.dataset.label = row.point.label;
    shape(group, "circle", { class: "halo", cx: x, cy: y, r: 15 });
    shape(group, "path", { class: "whisker", d: `M${x} ${top}V${bottom}M${x - 5} ${top}h10M${x - 5} ${bottom}h10` });
    if (row.axis.ends) {
      const [from, to] = row.axis.ends.map(frame.x);
      shape(group, "path", { class: "whisker", d: `M${from} ${y}H${to}M${from} ${y - 5}v10M${to} ${y - 5}v10` });
      taken.push([from, y - 4, to, y + 4]);
    }
    const size = row.front ? 7 : 6;
    if (kind === "better") shape(group, "path", { class: "mark", d: `M${x} ${y - size - 1}l${size + 1} ${2 * size}h${-2 * size - 2}z` });
    if (kind === "within") shape(group, "circle", { class: "mark", cx: x, cy: y, r: size });
    if (kind === "unsure") shape(group, "path", { class: "mark", d: `M${x} ${y - size - 1}l${size} ${size + 1}l${-size} ${size + 1}l${-size} ${-size - 1}z` });
    if (kind === "worse") shape(group, "path", { class: "mark", d: `M${x - 5} ${y - 5}l10 10M${x + 5} ${y - 5}l-10 10` });
    taken.push([x - 8, y - 8, x + 8, y + 8], [x - 3, top, x + 3, bottom]);
    listen(group, row, x, y);
    return { group, row, x, y, top, bottom };
  }

  // Names go where they overlap least with what is drawn already; the front is named first.
  function names(marks, frame, taken) {
    const order = [...marks].sort((a, b) => (b.row.front - a.row.front) || (a.x - b.x));
    const named = marks.length > 24 ? order.filter((one) => one.row.front) : order;
    for (const { group, row, x, y, top, bottom } of named) {
      const full = row.point.label, short = full.length > 34 ? full.slice(0, 32) + "\u2026" : full;
      const text = shape(group, "text", { class: "name" }, short);
      const wide = text.getComputedTextLength ? text.getComputedTextLength() || 6.6 * short.length : 6.6 * short.length, tall = 14;
      const spots = [[x + 11, y, 0], [x - 11 - wide, y, 30], [x - wide / 2, top - 12, 45], [x - wide / 2, bottom + 13, 45]];
      for (const step of [1, 2, 3]) {
        for (const up of [-1, 1]) spots.push([x + 11, y + up * step * 12, 70 * step], [x - 11 - wide, y + up * step * 12, 80 * step]);
      }
      const cost = ([left, middle, dislike]) => {
        const box = [left, middle - tall / 2, left + wide, middle + tall / 2];
        const outside = Math.max(0, BOX.left - box[0]) + Math.max(0, box[2] - WIDTH + BOX.right) + Math.max(0, BOX.top - box[1]) + Math.max(0, box[3] - HEIGHT + BOX.bottom);
        return taken.reduce((sum, other) => sum + Math.max(0, Math.min(box[2], other[2]) - Math.max(box[0], other[0]))
          * Math.max(0, Math.min(box[3], other[3]) - Math.max(box[1], other[1])), dislike + 140 * outside);
      };
      const [left, middle] = spots.reduce((best, spot) => cost(spot) < cost(best) ? spot : best);
      const [nearX, nearY] = [Math.min(Math.max(x, left), left + wide), Math.min(Math.max(y, middle - tall / 2), middle + tall / 2)];
      if (nearX !== x && Math.hypot(nearX - x, nearY - y) > 14) {
        group.prepend(shape(group, "line", { class: "leader", x1: x, y1: y, x2: nearX, y2: nearY }));
      }
      text.setAttribute("x", left);
      text.setAttribute("y", middle + 4);
      taken.push([left, middle - tall / 2, left + wide, middle + tall / 2]);
    }
  }

  // -- reading a point --------------------------------------------------------------------------------------
  function spoken(row) {
    const { point, change, axis } = row;
    return `${point.label}: ${point.verdict}; ${DATA.metrics[state.metric]} ${signed(change.value, DATA.decimals)} ${between(change)}; `
      + `${DATA.costs[state.cost]} ${axis.relative ? percent(axis.x) : axis.after}`;
  }

  function show(row, x, y) {
    const { point } = row, list = element("dl");
    const add = (name, value) => { list.append(element("dt", {}, name), element("dd", {}, value)); };
    for (const name in point.differences) {
      const change = point.differences[name];
      add(DATA.metrics[name], `${signed(change.value, DATA.decimals)} ${between(change)}`);
      if (name === state.metric && change.seeds.length > 1) add("by seed", change.seeds.map((v) => signed(v, DATA.decimals)).join("  "));
    }
    for (const name in point.axes) {
      const axis = point.axes[name];
      const text = axis.relative ? `${percent(axis.x)}  (${axis.after})` : axis.after;
      add(DATA.costs[name], axis.ends ? `${text} [${axis.ends[0].toFixed(2)}, ${axis.ends[1].toFixed(2)}]` : text);
    }
    tip.replaceChildren(element("b", {}, point.label), element("p", {}, `${point.verdict}: ${point.reason}`), list);
    for (const flag of point.flags) tip.append(element("p", { class: "bad" }, flag));
    tip.hidden = false;
    const drawn = plot.querySelector("svg").getBoundingClientRect(), scale = drawn.width / WIDTH;
    const room = drawn.width - tip.offsetWidth;
    const beside = x * scale + 22 <= room ? x * scale + 22 : x * scale - 22 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
    tip.style.top = `${Math.max(0, Math.min(plot.clientHeight - tip.offsetHeight, y * scale - 40))}px`;
    light(point.label, true);
  }

  function listen(group, row, x, y) {
    const label = row.point.label;
    const leave = () => { tip.hidden = true; light(label, false); };
    group.addEventListener("pointerenter", () => show(row, x, y));
    group.addEventListener("pointerleave", leave);
    group.addEventListener("focus", () => { show(row, x, y); readout.textContent = spoken(row); });
    group.addEventListener("blur", leave);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { tip.hidden = true; return; }
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const all = [...plot.querySelectorAll(".point")].sort((a, b) => a.querySelector(".halo").getAttribute("cx") - b.querySelector(".halo").getAttribute("cx"));
      all[(all.indexOf(group) + step + all.length) % all.length].focus();
    });
  }

  function light(label, on) {
    for (const one of document.querySelectorAll("[data-label]")) if (one.dataset.label === label) one.classList.toggle("lit", on);
  }

  // -- controls ---------------------------------------------------------------------------------------------
  function fill(select, options, chosen) {
    for (const name in options) select.append(element("option", { value: name }, options[name]));
    select.value = chosen;
    select.addEventListener("change", () => { state[select.id] = select.value; draw(); });
  }

  function setUp() {
    fill(document.getElementById("metric"), DATA.metrics, state.metric);
    fill(document.getElementById("cost"), DATA.costs, state.cost);
    for (const radio of controls.querySelectorAll("input[type=radio]")) {
      radio.addEventListener("change", () => { state[radio.name] = radio.value; draw(); });
    }
    const families = [...new Set(DATA.points.flatMap((point) => point.families))].sort();
    const box = document.getElementById("families");
    box.hidden = families.length < 2;
    for (const name of families) {
      const label = element("label"), input = element("input", { type: "checkbox", checked: "" });
      input.addEventListener("change", () => { state.hidden[input.checked ? "delete" : "add"](name); draw(); });
      label.append(input, ` ${name}`);
      box.append(label);
    }
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.hidden = !DATA.points.length;
    for (const row of document.querySelectorAll("tr[data-label]")) {
      for (const [kind, on] of [["pointerenter", true], ["pointerleave", false]]) {
        row.addEventListener(kind, () => light(row.dataset.label, on));
      }
    }
    window.addEventListener("beforeprint", () => {
      for (const part of document.querySelectorAll("details")) part.open = true;
    });
    const save = document.getElementById("save");
    if (save) {
      save.hidden = false;
      save.addEventListener("click", () => {
        const url = URL.createObjectURL(new Blob([document.getElementById("raw").textContent], { type: "application/json" }));
        const link = element("a", { href: url, download: "measurements.json" });
        link.click();
        URL.revokeObjectURL(url);
      });
    }
  }

  setUp();
  if (DATA.points.length) draw();
})();
