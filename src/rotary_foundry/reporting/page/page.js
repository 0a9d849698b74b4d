// The page: runs, the recipe's timeline, charts, tables. Built from the content that the script above it holds; a page
// that watches asks for it again and keeps zoom and legends as they are.

const view = {
  hidden: new Set(),
  cursor: null,
  dragging: false,
  zoomed: null,
  charts: new Map(),
  timelines: [],
  content: null,

  range() {
    return this.zoomed ?? [0, Math.max(1, ...this.content.runs.map((run) => Math.max(run.total, run.token)))];
  },
  toggle(key) {
    if (!this.hidden.delete(key)) this.hidden.add(key);
    this.draw();
  },
  zoom(range) {
    this.zoomed = range && range[1] > range[0] ? range : null;
    this.draw();
  },
  moveCursor(token) {
    this.cursor = token;
    for (const chart of this.charts.values()) chart.drawCursor();
    drawPosition();
  },
  draw() {
    for (const drawn of [...this.timelines, ...this.charts.values()]) drawn.draw();
    drawToolbar();
  },
  // Behind the lines: the stages of the first run that is shown, and what its rollbacks abandoned.
  background(x, top, bottom) {
    const run = this.content.runs.find((_, index) => !this.hidden.has(`run/${index}`));
    if (!run) return [];
    const band = (name, from, to) => {
      const [left, right] = [Math.max(x.low, from), Math.min(x.high, to)];
      return (
        left < right &&
        svg("rect", {
          class: name,
          y: top,
          height: bottom - top,
          x: x.at(left),
          width: Math.max(1, x.at(right) - x.at(left)),
        })
      );
    };
    const bands = stages(run).map((stage, index) => index % 2 && band("stage", stage.start, stage.end));
    return [...bands, ...run.rollbacks.map((one) => band("back", one.to_token, one.token))].filter(Boolean);
  },
};

function stages(run) {
  const found = [];
  for (const segment of run.segments) {
    const last = found.at(-1);
    if (last && last.name === segment.stage) {
      last.end = segment.end_token;
      last.segments.push(segment);
    } else found.push({ name: segment.stage, start: segment.start_token, end: segment.end_token, segments: [segment] });
  }
  return found;
}

function span(values, show) {
  const [first, last] = [show(values[0]), show(values.at(-1))];
  return first === last ? first : `${first} → ${last}`;
}

function moment(text) {
  return new Date(text).toLocaleString("en", { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toPrecision(2)} h` : `${(seconds / 86400).toPrecision(2)} days`;
}

// Of a stage: one run's stages have a colour each; several runs have theirs.
function colourOf(run, stage) {
  return view.content.runs.length > 1 ? run : stage;
}

// The recipe: tokens to the right, rows upwards, what is trained already in full colour.
class Timeline {
  constructor(run, index) {
    this.index = index;
    this.picture = svg("svg", { role: "img", class: "plot timeline" });
    this.table = html("div", { class: "scroll" });
    this.title = html("h3");
    this.element = html(
      "figure",
      { class: "chart wide", id: `timeline-${index}` },
      html("figcaption", {}, this.title),
      this.picture,
      this.table,
    );
    this.update(run);
  }

  update(run) {
    this.run = run;
    const rollbacks = run.rollbacks.length;
    this.title.replaceChildren(
      "Recipe",
      html("span", { class: "unit" }, ` ${run.name}: ${whole(run.total)} tokens, height is batch size`),
    );
    this.picture.setAttribute(
      "aria-label",
      `The recipe's ${stages(run).length} stages along its ${whole(run.total)} tokens, ` +
        `${whole(run.token)} of which are trained; ${rollbacks || "no"} rollback${rollbacks === 1 ? "" : "s"}. The table that follows has the values.`,
    );
    this.table.replaceChildren(
      table(
        ["stage", "tokens", "updates", "rows", "length", "theta", "learning rate", "weight decay", "mixture"],
        stages(run).map((stage, index) => {
          const each = (key) => stage.segments.map((segment) => segment[key]);
          const mixture = Object.entries(stage.segments[0].mixture ?? {})
            .map(([source, share]) => `${source} ${share}`)
            .join(", ");
          const zoom = html(
            "button",
            {
              type: "button",
              class: "link",
              title: "Zoom to this stage",
              onclick: () => view.zoom([stage.start, stage.end]),
            },
            html("span", { class: `swatch c${colourOf(this.index, index) % 7}` }),
            stage.name,
          );
          return [
            zoom,
            whole(stage.end - stage.start),
            whole(each("updates").reduce((sum, updates) => sum + updates, 0)),
            span(each("rows"), whole),
            span(each("row_length"), whole),
            span(each("knobs").flatMap((knobs) => knobs?.rope_theta ?? []), whole),
            span(
              [
                stage.segments[0].lr_start,
                Math.max(...each("lr_start"), ...each("lr_end")),
                stage.segments.at(-1).lr_end,
              ].filter((lr, at, all) => at !== 1 || (lr !== all[0] && lr !== all[2])),
              short,
            ),
            span(each("weight_decay"), short),
            mixture || "every row once",
          ];
        }),
      ),
    );
    this.draw();
  }

  draw() {
    this.element.hidden = view.hidden.has(`run/${this.index}`);
    const [width, height] = [this.picture.clientWidth, this.picture.clientHeight];
    if (!width) return;
    const run = this.run;
    const x = new TokenScale(
      [0, Math.max(1, ...view.content.runs.map((one) => Math.max(one.total, one.token)))],
      MARGIN.left,
      width - MARGIN.right,
    );
    const [top, bottom] = [24, height - MARGIN.bottom - (run.rollbacks.length ? 16 : 0)];
    const most = Math.max(1, ...run.segments.map((segment) => segment.rows));
    const shapes = [];
    stages(run).forEach((stage, order) => {
      const index = colourOf(this.index, order);
      for (const segment of stage.segments) {
        const tall = Math.max(4, ((bottom - top) * segment.rows) / most);
        const place = (from, to) => ({
          x: x.at(from),
          width: Math.max(0.6, x.at(to) - x.at(from) - 1),
          y: bottom - tall,
          height: tall,
          rx: 2,
        });
        const done = Math.min(segment.end_token, Math.max(segment.start_token, run.token));
        const knobs = Object.entries(segment.knobs ?? {})
          .map(([name, value]) => `${name} ${[value].flat().map(short).join(" → ")}`)
          .join(", ");
        const about = `${stage.name}: ${whole(segment.updates)} updates of ${whole(segment.rows)} rows of ${whole(segment.row_length)} tokens, ${knobs}`;
        shapes.push(
          svg(
            "rect",
            { class: `rung c${index % 7}`, ...place(segment.start_token, segment.end_token) },
            svg("title", {}, about),
          ),
        );
        if (done > segment.start_token)
          shapes.push(
            svg(
              "rect",
              { class: `rung done c${index % 7}`, ...place(segment.start_token, done) },
              svg("title", {}, about),
            ),
          );
      }
      const label = `${stage.name} · ${whole(stage.segments[0].row_length)}`;
      const room = x.at(stage.end) - x.at(stage.start);
      const shown = [label, stage.name].find((text) => text.length * 7 < room);
      if (shown) shapes.push(svg("text", { class: "name", x: x.at(stage.start) + 1, y: top - 9 }, shown));
    });
    for (const back of run.rollbacks) {
      const [from, to] = [x.at(back.token), x.at(back.to_token)];
      const y = bottom + 9;
      shapes.push(
        svg(
          "path",
          { class: "arrow", d: `M${from} ${bottom + 2}V${y}H${to}V${bottom + 2}m-3.5 4.5l3.5 -4.5l3.5 4.5` },
          svg("title", {}, `rollback ${back.number}: ${back.why ?? ""}`),
        ),
      );
    }
    if (run.token < run.total)
      shapes.push(svg("line", { class: "now", x1: x.at(run.token), x2: x.at(run.token), y1: top - 4, y2: bottom }));
    if (view.zoomed)
      shapes.push(
        svg("rect", {
          class: "window",
          x: x.at(view.zoomed[0]),
          width: Math.max(2, x.at(view.zoomed[1]) - x.at(view.zoomed[0])),
          y: top - 4,
          height: bottom - top + 8,
          rx: 3,
        }),
      );
    this.picture.replaceChildren(...shapes, x.axis(height));
  }
}

function table(heads, rows) {
  return html(
    "table",
    {},
    html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
    html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map((cell) => html("td", {}, cell ?? "–"))))),
  );
}

function card(run, index) {
  const done = run.total ? Math.min(1, run.token / run.total) : 0;
  const left = run.tokens_per_second ? (run.total - run.token) / run.tokens_per_second : null;
  const facts = [
    ["loss", run.loss === null ? null : run.loss.toFixed(3)],
    ["held-out", run.held_out === null ? null : run.held_out.toFixed(3)],
    ["tokens/s", run.tokens_per_second === null ? null : short(run.tokens_per_second)],
    ["MFU", run.mfu === null ? null : percent(run.mfu)],
    ["rollbacks", run.rollbacks.length || null],
    [done < 1 ? "to go, at this rate" : null, done < 1 && left !== null ? duration(left) : null],
  ].filter(([name, value]) => name && value !== null);
  const state = !run.batch
    ? "no update yet"
    : done === 1
      ? "finished"
      : `${(Math.floor(1000 * done) / 10).toFixed(1)} %`;
  const written = run.last_written ? `; the last one written ${moment(run.last_written)}` : "";
  const many = view.content.runs.length > 1;
  const name = many
    ? html(
        "button",
        {
          type: "button",
          class: `entry run c${index % 7}`,
          "data-run": index,
          "aria-pressed": String(!view.hidden.has(`run/${index}`)),
          onclick: () => view.toggle(`run/${index}`),
        },
        html("span", { class: "swatch" }),
        run.name,
      )
    : html("h2", {}, run.name);
  return html(
    "section",
    { class: `card c${many ? index % 7 : 0}` },
    html("header", {}, name, html("span", { class: "state" }, state)),
    html("progress", { max: 1, value: done, "aria-label": `${whole(run.token)} of ${whole(run.total)} tokens` }),
    html(
      "p",
      { class: "small" },
      `${whole(run.token)} of ${whole(run.total)} tokens in ${whole(run.batch)} updates${written}`,
    ),
    html("dl", {}, ...facts.map(([key, value]) => html("div", {}, html("dt", {}, key), html("dd", {}, String(value))))),
  );
}

function evaluations(runs) {
  const many = runs.length > 1;
  const found = [heldOut(runs, many), ...results(runs, many)].filter(Boolean);
  return found.length ? block("Evaluations", "evaluations", ...found) : null;
}

function heldOut(runs, many) {
  const rows = runs.flatMap((run) => run.evaluations.map((one) => [run, one]));
  if (!rows.length) return null;
  return html(
    "div",
    { class: "scroll" },
    table(
      [...(many ? ["run"] : []), "after", "update", "tokens", "length", "held-out loss", "perplexity", "accuracy", ""],
      rows.map(([run, one]) => [
        ...(many ? [run.name] : []),
        one.batch ? one.stage : "first weights",
        whole(one.batch),
        whole(one.token),
        one.row_length && whole(one.row_length),
        one.loss?.toFixed(4),
        one.loss === null ? null : short(Math.exp(one.loss)),
        accuracy(one),
        one.kept ? "" : "abandoned",
      ]),
    ),
  );
}

function accuracy(one) {
  const key = Object.keys(one).find((name) => name.endsWith("accuracy"));
  return key === undefined ? null : percent(one[key]);
}

// What `rotary-foundry evaluate` found, with as many decimals as its own tables have.
function results(runs, many) {
  const rows = runs.flatMap((run) => run.results.map((one) => [run, one]));
  if (!rows.length) return [];
  const cells = ({ value, low, high }) => {
    const decimals = Math.max(...[value, low, high].map((number) => Math.abs(number ?? 0))) >= 0.1 ? 3 : 4;
    const shown = (number) => number?.toFixed(decimals) ?? "–";
    return [shown(value), (low ?? high) === null ? null : `${shown(low)} to ${shown(high)}`];
  };
  return [
    html("p", { class: "small" }, "Measured by rotary-foundry evaluate, with 95 % intervals where they are known:"),
    html(
      "div",
      { class: "scroll texts" },
      table(
        [...(many ? ["run"] : []), "model", "suite", "measure", "value", "95 % interval"],
        rows.map(([run, one]) => [...(many ? [run.name] : []), one.model, one.suite, one.name, ...cells(one)]),
      ),
    ),
  ];
}

function rollbacks(runs) {
  const rows = runs.flatMap((run) => run.rollbacks.map((one) => [run, one]));
  if (!rows.length) return null;
  const many = runs.length > 1;
  const asBefore = (value) => (value === null || value === undefined ? "as it was" : short(value));
  return block(
    "Rollbacks",
    "rollbacks",
    html(
      "div",
      { class: "scroll" },
      table(
        [
          ...(many ? ["run"] : []),
          "",
          "trigger",
          "from token",
          "back to",
          "learning rate",
          "weight decay",
          "data",
          "why",
        ],
        rows.map(([run, one]) => [
          ...(many ? [run.name] : []),
          String(one.number),
          one.trigger,
          whole(one.token),
          whole(one.to_token),
          asBefore(one.lr),
          asBefore(one.weight_decay),
          one.data,
          html("span", { class: "why" }, one.why ?? ""),
        ]),
      ),
    ),
  );
}

function differences(content) {
  if (content.runs.length < 2) return null;
  const rows = content.differences.map((row) => [html("code", {}, row.key), ...row.values]);
  return block(
    "What differs",
    "differences",
    rows.length
      ? html("div", { class: "scroll texts" }, table(["key", ...content.runs.map((run) => run.name)], rows))
      : html("p", {}, "Nothing: the runs have the same configuration."),
  );
}

function configuration(runs) {
  const many = runs.length > 1;
  const listing = (name, what) =>
    Object.keys(what).length
      ? html(
          "details",
          { open: !many && name !== "Configuration" },
          html("summary", {}, name),
          html("pre", {}, indented(what)),
        )
      : null;
  return runs.map((run) =>
    block(
      many ? `Configuration and environment, ${run.name}` : "Configuration and environment",
      null,
      listing("Environment", run.environment) ??
        html("p", { class: "small" }, "No environment.json: the run is older than it."),
      listing("Configuration", run.config),
    ),
  );
}

// As YAML would have it, near enough to read.
function indented(what, depth = 0) {
  const pad = "  ".repeat(depth);
  if (Array.isArray(what) && what.every((item) => item === null || typeof item !== "object"))
    return ` [${what.join(", ")}]`;
  const entries = Array.isArray(what) ? what.map((value) => ["-", value]) : Object.entries(what);
  return (
    (depth ? "\n" : "") +
    entries
      .map(([key, value]) => {
        const nested = value !== null && typeof value === "object";
        return `${pad}${key}${key === "-" ? "" : ":"}${nested ? (Object.keys(value).length ? indented(value, depth + 1) : " {}") : ` ${value}`}`;
      })
      .join("\n")
  );
}

function block(title, id, ...children) {
  return html("section", { class: "block", id: id ?? false }, html("h2", {}, title), ...children);
}

// These stay when the content comes anew: only what is in them changes, and the charts not even that.
const place = {
  trouble: html("span", { role: "status", class: "trouble" }),
  cards: html("div", { class: "cards" }),
  toolbar: html("nav", { class: "toolbar", "aria-label": "Zoom" }),
  position: html("span", { class: "position" }),
  grid: html("div", { class: "grid" }),
  tables: html("div"),
  footer: html("footer"),
};

function buildToolbar() {
  const run = view.content.runs[0];
  const ranges = [["Whole run", null], ...stages(run).map((stage) => [stage.name, [stage.start, stage.end]])];
  place.buttons = ranges.map(([name, range]) => [
    html("button", { type: "button", onclick: () => view.zoom(range) }, name),
    range,
  ]);
  place.toolbar.replaceChildren(...place.buttons.map(([button]) => button), place.position);
}

function drawToolbar() {
  for (const button of document.querySelectorAll("button[data-run]"))
    button.setAttribute("aria-pressed", String(!view.hidden.has(`run/${button.dataset.run}`)));
  for (const [button, range] of place.buttons)
    button.setAttribute("aria-pressed", String(String(range) === String(view.zoomed)));
  drawPosition();
}

function drawPosition() {
  const [low, high] = view.range();
  place.position.textContent =
    view.cursor !== null
      ? `token ${whole(view.cursor)}`
      : view.zoomed
        ? `${short(low)} – ${short(high)} tokens`
        : "drag across a chart to zoom";
}

function build(content) {
  view.content = content;
  for (const chart of content.charts) for (const series of chart.series) series.x = content.tokens[series.tokens];
  document.title = `${content.title} · Rotary Foundry`;
  place.cards.replaceChildren(...content.runs.map(card));
  buildToolbar();
  buildGrid(content);
  const open = [...place.tables.querySelectorAll("details")].map((details) => details.open);
  place.tables.replaceChildren(
    ...[
      evaluations(content.runs),
      rollbacks(content.runs),
      differences(content),
      ...configuration(content.runs),
    ].filter(Boolean),
  );
  [...place.tables.querySelectorAll("details")].forEach(
    (details, index) => index in open && (details.open = open[index]),
  );
  place.footer.textContent =
    `Written ${moment(content.written)}. ` +
    (content.thinned
      ? `Where a stage has more than ${content.buckets} updates, neighbouring ones share a point, at most ${content.buckets} to a stage: the line is their mean, the band behind it reaches from the lowest to the highest.`
      : "Every update is drawn.");
  view.draw();
}

function buildGrid(content) {
  const before = [...view.timelines, ...view.charts.values()].length;
  content.runs.forEach((run, index) =>
    view.timelines[index] ? view.timelines[index].update(run) : view.timelines.push(new Timeline(run, index)),
  );
  for (const spec of content.charts) {
    if (view.charts.has(spec.id)) view.charts.get(spec.id).update(spec);
    else view.charts.set(spec.id, new Chart(spec, view));
  }
  if (view.timelines.length + view.charts.size > before) place.grid.replaceChildren(...inOrder(content));
}

// What a recipe is comes first; of several runs, how they compare.
function inOrder(content) {
  const timelines = view.timelines.map((timeline) => timeline.element);
  const charts = content.charts.map((spec) => view.charts.get(spec.id).element);
  return content.runs.length > 1
    ? [...charts.slice(0, 1), ...timelines, ...charts.slice(1)]
    : [...timelines, ...charts];
}

document
  .querySelector("main")
  .append(
    html("h1", {}, "Rotary Foundry", place.trouble),
    place.cards,
    place.toolbar,
    place.grid,
    place.tables,
    place.footer,
  );
build(JSON.parse(document.getElementById("content").textContent));
new ResizeObserver(() => view.draw()).observe(document.querySelector("main"));
document.addEventListener("keydown", (event) => event.key === "Escape" && view.zoom(null));

const watch = Number(document.body.dataset.watch);
async function refresh() {
  const [ok, text] = await fetch("content.json", { cache: "no-store" })
    .then(async (answer) => [answer.ok, await answer.text()])
    .catch(() => [false, "the server has ended; this is the last that it said"]);
  place.trouble.textContent = ok ? "" : ` · ${text}`; // and what is shown stays
  if (!ok) return;
  const { written, ...content } = JSON.parse(text);
  const said = JSON.stringify(content);
  if (said !== refresh.last && !view.dragging) {
    refresh.last = said;
    build({ written, ...content });
  }
}
if (watch) setInterval(refresh, watch * 1000);
