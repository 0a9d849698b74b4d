"use strict";
// A chart of lines against tokens, as SVG. All charts share one view: the zoom, the cursor, and what is hidden.
// The values at the cursor stand in the legend, so nothing floats above the lines and a finger covers nothing.

const COLUMN = 1.5; // pixels across
const CROWD = 2; // points in a column of pixels that are still drawn each
const MARGIN = { left: 56, right: 10, top: 8, bottom: 24 };

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function short(value) {
  const size = Math.abs(value);
  for (const [unit, power] of [
    ["T", 1e12],
    ["B", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ])
    if (size >= power * 0.99995) return trim((value / power).toPrecision(4)) + " " + unit;
  if (size !== 0 && size < 0.01) return trim(value.toExponential(2));
  return trim(value.toPrecision(4));
}

function trim(text) {
  const [digits, exponent] = text.split("e");
  const trimmed = digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
  return exponent ? `${trimmed}e${exponent.replace("+", "")}` : trimmed;
}

function whole(value) {
  return Math.round(value).toLocaleString("en");
}

function percent(value) {
  return trim((100 * value).toPrecision(3)) + " %";
}

function range(from, to) {
  return Array.from({ length: to - from }, (_, offset) => from + offset);
}

// The first index whose value is not below what is looked for.
function lowerBound(values, wanted) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

function ticks(low, high, count) {
  const step = niceStep((high - low) / Math.max(1, count));
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function logTicks(low, high, count) {
  if (high / low < 4) return ticks(low, high, count);
  const found = [];
  const factors = high / low < 40 ? [1, 2, 3, 5] : high / low < 2000 ? [1, 3] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  return found;
}

// Tokens to pixels, and back.
class TokenScale {
  constructor([low, high], left, right) {
    Object.assign(this, { low, high, left, right });
  }
  at(token) {
    return this.left + ((token - this.low) / (this.high - this.low)) * (this.right - this.left);
  }
  token(pixel) {
    const share = Math.min(1, Math.max(0, (pixel - this.left) / (this.right - this.left)));
    return this.low + share * (this.high - this.low);
  }
  axis(height) {
    const group = svg("g", { class: "axis" });
    for (const tick of ticks(this.low, this.high, (this.right - this.left) / 90)) {
      const x = this.at(tick);
      const anchor = x > this.right - 20 ? "end" : x < this.left + 12 ? "start" : "middle";
      group.append(svg("text", { x, y: height - 6, "text-anchor": anchor }, short(tick)));
    }
    return group;
  }
}

class Chart {
  constructor(spec, view) {
    this.view = view;
    this.legend = html("div", { class: "legend" });
    this.picture = svg("svg", { role: "img", class: "plot" });
    this.title = html("h3");
    this.about = html("p", { class: "about" });
    this.words = html("p");
    this.element = html(
      "figure",
      { class: "chart", id: `chart-${spec.id}` },
      html("figcaption", {}, this.title, this.about),
      this.legend,
      this.picture,
      html("details", {}, html("summary", {}, "In words"), this.words),
    );
    this.listen();
    this.update(spec);
  }

  update(spec) {
    this.spec = spec;
    this.show = spec.percent ? percent : spec.exact ? whole : short;
    this.element.classList.toggle("wide", spec.wide);
    this.title.replaceChildren(spec.title, spec.unit && html("span", { class: "unit" }, ` ${spec.unit}`));
    this.about.textContent = spec.about;
    this.words.textContent = spec.words;
    this.picture.setAttribute("aria-label", spec.words);
    this.entries = new Map(); // of the legend: what is toggled together
    for (const series of spec.series) {
      const key = `${spec.id}/${series.label}`;
      if (!this.entries.has(key)) this.entries.set(key, { key, series, parts: [] });
      this.entries.get(key).parts.push(series);
    }
    this.legend.replaceChildren(...[...this.entries.values()].map((entry) => this.entryButton(entry)));
    this.legend.classList.toggle("alone", this.entries.size === 1 && !spec.wide);
    if (spec.series.some((series) => series.abandoned))
      this.legend.append(
        html("span", { class: "entry note" }, html("span", { class: "swatch dots" }), "abandoned by a rollback"),
      );
    this.draw();
  }

  entryButton(entry) {
    entry.value = html("output", { "aria-live": "off" });
    entry.button = html(
      "button",
      { type: "button", class: `entry c${entry.series.colour}`, onclick: () => this.view.toggle(entry.key) },
      html("span", { class: entry.series.points ? "swatch diamond" : "swatch" }),
      html("span", { class: "label" }, entry.series.label),
      entry.value,
    );
    return entry.button;
  }

  visible(series) {
    return !this.view.hidden.has(`run/${series.run}`) && !this.view.hidden.has(`${this.spec.id}/${series.label}`);
  }

  draw() {
    const width = this.picture.clientWidth;
    const height = this.picture.clientHeight;
    if (!width) return;
    for (const entry of this.entries.values()) {
      entry.button.setAttribute("aria-pressed", String(!this.view.hidden.has(entry.key)));
      entry.button.hidden = this.view.hidden.has(`run/${entry.series.run}`);
    }
    this.x = new TokenScale(this.view.range(), MARGIN.left, width - MARGIN.right);
    const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
    const shown = this.spec.series.filter((series) => this.visible(series));
    const y = this.valueScale(shown, top, bottom);
    const clip = `clip-${this.spec.id}`;
    const lines = svg("g", { "clip-path": `url(#${clip})` });
    const points = svg("g", { "clip-path": `url(#${clip}-points)` }); // one at the very end is drawn whole
    for (const series of shown) (series.points ? points : lines).append(...this.drawSeries(series, y));
    const area = (room) =>
      svg("rect", {
        x: this.x.left - room,
        y: top,
        width: this.x.right - this.x.left + 2 * room,
        height: bottom - top,
      });
    this.cursor = svg("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    this.selection = svg("rect", { class: "selection", y: top, height: bottom - top, visibility: "hidden" });
    this.picture.replaceChildren(
      svg("clipPath", { id: clip }, area(0)),
      svg("clipPath", { id: `${clip}-points` }, area(8)),
      ...this.view.background(this.x, top, bottom),
      this.valueAxis(y),
      this.x.axis(height),
      lines,
      points,
      this.cursor,
      this.selection,
    );
    this.drawCursor();
  }

  valueScale(shown, top, bottom) {
    const log = this.spec.log;
    let [low, high] = this.extent(shown, this.x.low);
    // A loss that starts at 11 would leave what counts a tenth of the height: the beginning may reach above.
    const [, later] = log ? this.extent(shown, this.x.low + 0.01 * (this.x.high - this.x.low)) : [low, high];
    const above = later > 0 && high > 1.5 * later ? high : null;
    if (above) high = later;
    if (low > high) [low, high] = log ? [1, 10] : [0, 1];
    if (this.spec.zero) low = Math.min(0, low);
    const change = log ? Math.log : (value) => value;
    let [from, to] = [change(low), change(high)];
    const room = (to - from || Math.abs(to) || 1) * 0.06;
    from -= this.spec.zero && low === 0 ? 0 : room;
    to += room;
    const at = (value) => bottom - ((change(value) - from) / (to - from)) * (bottom - top);
    const count = (bottom - top) / 38;
    const back = log ? Math.exp : (value) => value;
    return { at, above, ticks: log ? logTicks(back(from), back(to), count) : ticks(from, to, count) };
  }

  extent(shown, begin) {
    let [low, high] = [Infinity, -Infinity];
    for (const series of shown) {
      if (series.x.at(-1) < begin || series.x[0] > this.x.high) continue;
      const [from, to] = this.within(series);
      const first = Math.min(to - 1, Math.max(from, lowerBound(series.x, begin)));
      const last = Math.max(first + 1, Math.min(to, lowerBound(series.x, this.x.high + 1)));
      for (let index = first; index < last; index++)
        for (const value of [(series.low ?? series.y)[index], (series.high ?? series.y)[index]])
          if (value !== null && (!this.spec.log || value > 0))
            [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    return [low, high];
  }

  // The points in view, and one on either side.
  within(series) {
    return [
      Math.max(0, lowerBound(series.x, this.x.low) - 1),
      Math.min(series.x.length, lowerBound(series.x, this.x.high) + 1),
    ];
  }

  valueAxis(y) {
    const group = svg("g", { class: "axis" });
    for (const tick of y.ticks) {
      const at = y.at(tick);
      group.append(
        svg("line", { class: "grid", x1: this.x.left, x2: this.x.right, y1: at, y2: at }),
        svg(
          "text",
          { x: this.x.left - 7, y: at + 4, "text-anchor": "end" },
          this.show(Math.abs(tick) < 1e-12 ? 0 : tick),
        ),
      );
    }
    if (y.above)
      group.append(
        svg("text", { x: this.x.left + 26, y: MARGIN.top + 11 }, `↑ begins above, up to ${this.show(y.above)}`),
      );
    return group;
  }

  drawSeries(series, y) {
    const style = `c${series.colour}${series.abandoned ? " abandoned" : ""}${series.dashed ? " dashed" : ""}`;
    if (series.points) {
      const [from, to] = this.within(series);
      const at = (index) =>
        `M${this.x.at(series.x[index]).toFixed(1)} ${y.at(series.y[index]).toFixed(1)}m0 -6l6 6l-6 6l-6 -6z`;
      const there = (index) => series.y[index] !== null && (!this.spec.log || series.y[index] > 0);
      const reach = (index) =>
        `M${this.x.at(series.x[index]).toFixed(1)} ${y.at(series.low[index]).toFixed(1)}V${y.at(series.high[index]).toFixed(1)}`;
      const shown = range(from, to).filter(there);
      return [
        svg("path", { class: `reach ${style}`, d: series.low ? shown.map(reach).join("") : "" }),
        svg("path", { class: `points ${style}`, d: shown.map(at).join("") }),
      ];
    }
    const drawn = [];
    const line = [];
    for (const stretch of this.stretches(series)) {
      const place = (point, value) => `${point.x.toFixed(1)} ${y.at(value).toFixed(1)}`;
      // What is set for an update holds for all of its tokens: from where the one before it ended.
      const join = this.spec.steps
        ? (point) => `V${y.at(point.y).toFixed(1)}H${point.x.toFixed(1)}`
        : (point) => `L${place(point, point.y)}`;
      line.push(
        `M${place(stretch[0], stretch[0].y)}${stretch.slice(1).map(join).join("")}${stretch.length === 1 ? "h0.1" : ""}`,
      );
      if (stretch.some((point) => point.low < point.high)) {
        const edges = [
          ...stretch.map((point) => place(point, point.high)),
          ...stretch.reverse().map((point) => place(point, point.low)),
        ];
        drawn.push(svg("path", { class: `band ${style}`, d: `M${edges.join("L")}z` }));
      }
    }
    return [...drawn, svg("path", { class: `line ${style}`, d: line.join("") })];
  }

  // The points in view, in stretches without a gap. Where many stand in one column of pixels they become one, as
  // they did in the buckets: their mean, lowest and highest.
  stretches(series) {
    const [from, to] = this.within(series);
    const found = [];
    let column = [];
    let gap = true;
    const close = () => {
      if (column.length > CROWD && !this.spec.steps) {
        const mean = column.reduce((sum, point) => sum + point.y, 0) / column.length;
        const [low, high] = [
          Math.min(...column.map((point) => point.low)),
          Math.max(...column.map((point) => point.high)),
        ];
        found.at(-1).push({ x: column[0].x, y: mean, low, high });
      } else found.at(-1)?.push(...column);
      column = [];
    };
    for (let index = from; index < to; index++) {
      const [y, low, high] = [series.y[index], (series.low ?? series.y)[index], (series.high ?? series.y)[index]];
      const x = this.x.at(series.x[index]);
      const there = y !== null && (!this.spec.log || low > 0);
      if (!there || gap || x - column[0].x >= COLUMN) close();
      if (there && gap) found.push([]);
      if (there) column.push({ x, y, low, high });
      gap = !there;
    }
    close();
    return found;
  }

  // The line, and the values in the legend: at the cursor, or the last ones in view.
  drawCursor() {
    if (!this.cursor) return;
    const token = this.view.cursor;
    const inside = token !== null && token >= this.x.low && token <= this.x.high;
    this.cursor.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x.at(token));
    for (const entry of this.entries.values()) {
      const said = entry.parts
        .filter((series) => !series.abandoned)
        .map((series) => this.valueAt(series, inside ? token : null));
      entry.value.textContent = said
        .filter((value) => value !== null)
        .map((value) => this.show(value))
        .join(" of ");
      if (entry.parts.some((series) => series.dashed))
        entry.value.textContent = said
          .reverse()
          .map((value) => (value === null ? "–" : this.show(value)))
          .join(" / ");
    }
  }

  // What is nearest to a token, nothing beyond the line's end; without a token, the last one in view.
  valueAt(series, token) {
    if (token !== null && !series.points && token > series.x.at(-1) + 0.01 * (this.x.high - this.x.low)) return null;
    token ??= this.x.high;
    const after = lowerBound(series.x, token);
    const [left, right] = [Math.max(0, after - 1), Math.min(after, series.x.length - 1)];
    const nearest = token - series.x[left] < series.x[right] - token ? left : right;
    return series.y[nearest];
  }

  listen() {
    let from = null;
    const pixel = (event) => event.clientX - this.picture.getBoundingClientRect().left;
    const select = (event) => {
      const [low, high] = [from, pixel(event)]
        .map((at) => Math.min(this.x.right, Math.max(this.x.left, at)))
        .sort((a, b) => a - b);
      return [low, high];
    };
    this.picture.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = pixel(event);
      this.view.dragging = true;
      this.picture.setPointerCapture(event.pointerId);
    });
    this.picture.addEventListener("pointermove", (event) => {
      if (!this.x) return;
      this.view.moveCursor(this.x.token(pixel(event)));
      if (from === null) return;
      const [low, high] = select(event);
      fill(this.selection, { x: low, width: high - low, visibility: "visible" }, []);
    });
    this.picture.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [low, high] = select(event);
      from = null;
      this.view.dragging = false;
      this.selection.setAttribute("visibility", "hidden");
      if (high - low > 8) this.view.zoom([this.x.token(low), this.x.token(high)]);
      else this.view.moveCursor(this.x.token(pixel(event)));
    });
    this.picture.addEventListener("pointercancel", () => {
      from = null; // the finger scrolls
      this.view.dragging = false;
      this.selection.setAttribute("visibility", "hidden");
    });
    this.picture.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.view.moveCursor(null);
    });
    this.picture.addEventListener("dblclick", () => this.view.zoom(null));
  }
}
