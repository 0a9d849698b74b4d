"use strict";
// Draws the page's figures in the reader's light or dark colours. All share one zoom over tokens, and each fits its
// y axis to the values in view.

const content = JSON.parse(document.getElementById("content").textContent);
const plots = [...document.querySelectorAll(".plot")];
const drawn = [];
const whole = [0, content.tokens];
let view = whole;

function template() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map((name) => style.getPropertyValue(`--${name}`));
  const axis = { gridcolor: line, linecolor: line, color: soft, spikecolor: soft };
  const font = { family: "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif", size: 12 };
  const hoverlabel = { bgcolor: card, bordercolor: line, font: { color: ink } };
  const legend = { font: { color: ink } };
  return { layout: { font: { ...font, color: soft }, xaxis: axis, yaxis: axis, legend, hoverlabel } };
}

// Returns the range of the y axis for the values in view, and the highest value if that is outside. The first hundredth
// of the view may exceed the axis; otherwise a loss that starts at 11 would leave a tenth of the height for the rest.
function fit({ data, layout }) {
  const log = layout.yaxis.type === "log";
  const late = view[0] + 0.01 * (view[1] - view[0]);
  let [low, high, later] = [Infinity, -Infinity, -Infinity];
  for (const { x, y, error_y, visible } of data) {
    if (visible === false || visible === "legendonly") continue;
    x.forEach((token, index) => {
      // a point is at the end of its updates: one at the left edge belongs to updates before the view
      if (token <= view[0] || token > view[1] || y[index] === null || (log && y[index] <= 0)) return;
      low = Math.min(low, y[index] - (error_y?.arrayminus?.[index] ?? 0));
      high = Math.max(high, y[index] + (error_y?.array?.[index] ?? 0));
      if (token >= late) later = Math.max(later, y[index]);
    });
  }
  if (low > high) return { range: [0, 1], above: null };
  const above = log && later > 0 && high > 1.5 * later ? high : null;
  if (above) high = later;
  if (layout.meta.zero) low = Math.min(0, low);
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  const room = 0.06 * (high - low || Math.abs(high) || 1);
  return { range: [layout.meta.zero && low === 0 ? 0 : low - room, high + room], above };
}

// Adds the names of stages that have enough room, and a note on values above the axis.
function notes(plot, above) {
  const note = { xref: "paper", yref: "paper", x: 0, y: 1, yanchor: "top", xanchor: "left", showarrow: false };
  const found = above ? [{ ...note, x: 0.03, text: `↑ begins above, up to ${Number(above.toPrecision(4))}` }] : [];
  for (const [name, start, end] of plot === plots[0] ? content.stages : []) {
    const share = (token) => Math.min(Math.max((token - view[0]) / (view[1] - view[0]), 0), 1);
    const [left, right] = [share(start), share(end)];
    if ((right - left) * (plot.clientWidth - 60) > 7 * name.length + 8)
      found.push({ ...note, x: left, yanchor: "bottom", text: name.replaceAll("&", "&amp;").replaceAll("<", "&lt;") });
  }
  return found;
}

function settings(plot, figure) {
  const { range, above } = fit(figure);
  return { "xaxis.range": [...view], "yaxis.range": range, annotations: notes(plot, above) };
}

function zoom(range) {
  view = range ?? whole;
  for (const plot of drawn) Plotly.relayout(plot, settings(plot, plot));
  for (const [button, range] of buttons) button.setAttribute("aria-pressed", String(String(range) === String(view)));
}

async function draw(plot, { data, layout }) {
  const { "xaxis.range": tokens, "yaxis.range": values, annotations } = settings(plot, { data, layout });
  Object.assign(layout.xaxis, { range: tokens });
  Object.assign(layout.yaxis, { range: values });
  Object.assign(layout, { annotations, template: template() });
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
  await Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true, doubleClick: false });
  plot.on("plotly_relayout", (change) => {
    if ("xaxis.range[0]" in change) zoom([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
  });
  plot.on("plotly_doubleclick", () => zoom(null));
  plot.on("plotly_restyle", () => Plotly.relayout(plot, settings(plot, plot)));
}

function toggleRun(button) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  for (const plot of drawn) {
    const traces = plot.data.flatMap(({ meta }, index) => (String(meta?.run) === button.dataset.run ? [index] : []));
    if (traces.length) Plotly.restyle(plot, { visible: shown }, traces);
  }
}

const buttons = [["Whole run", ...whole], ...content.stages].map(([name, ...range]) => {
  const button = document.createElement("button");
  button.textContent = name;
  button.type = "button";
  button.setAttribute("aria-pressed", String(String(range) === String(view)));
  button.addEventListener("click", () => zoom(range));
  return [button, range];
});
const hint = document.createElement("span");
hint.textContent = "Drag across a chart to zoom all of them; double-click for the whole run.";
document.querySelector(".toolbar").prepend(...buttons.map(([button]) => button));
document.querySelector(".toolbar").append(hint);
for (const button of document.querySelectorAll("[data-run]")) button.addEventListener("click", () => toggleRun(button));
// The charts are drawn one by one, so that the page can be read and scrolled before the last is drawn.
const all = plots.reduce(async (before, plot, index) => {
  await before;
  if (index > 0) await new Promise((next) => setTimeout(next));
  await draw(plot, content.figures[index]);
  drawn.push(plot);
}, Promise.resolve());
document.addEventListener("keydown", (event) => event.key === "Escape" && zoom(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of drawn) Plotly.relayout(plot, { template: template() });
});
