"use strict";
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// A colour of the page, "--one", as it is at the moment; anything else as it stands.
function colored(value) {
  if (typeof value === "string" && value.startsWith("--"))
    return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map(colored);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, colored(part)]));
  return value;
}

function layoutOf(own, narrow) {
  const axis = { gridcolor: "--line", zerolinecolor: "--line", linecolor: "--line", automargin: true, ...(narrow ? { nticks: 5 } : {}) };
  return colored({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", color: "--ink", size: 13 },
    margin: { l: 48, r: 12, t: own.title ? 36 : 12, b: 44 }, hovermode: "closest", autosize: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, hoverlabel: { bgcolor: "--card", bordercolor: "--line", font: { color: "--ink" } },
    ...own, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
  });
}

function draw(name) {
  const { data, layout, frames, slider } = pictures[name], place = document.getElementById(name);
  const shown = data.map((trace) => ({ ...trace }));
  if (frames) frames[document.getElementById(slider).value].forEach((part, trace) => Object.assign(shown[trace], part));
  return Plotly.react(place, colored(shown), layoutOf(layout, place.clientWidth < 480), { displayModeBar: false, responsive: true });
}

function moved(slider) {
  document.getElementById(`${slider.id}-shown`).textContent = slider.value;
  for (const name in pictures) if (pictures[name].slider === slider.id) draw(name);
  for (const row of document.querySelectorAll(`[data-slider="${slider.id}"]`)) {
    const labels = JSON.parse(row.dataset.predicted)[slider.value];
    let right = 0;
    row.querySelectorAll("figure").forEach((figure, query) => {
      const isRight = labels[query] === Number(figure.dataset.label);
      right += isRight;
      figure.className = isRight ? "right" : "wrong";
      figure.querySelector("figcaption").textContent = `${isRight ? "✓" : "✗"} ${labels[query]}`;
    });
    document.getElementById(row.dataset.count).textContent = `${right} of ${labels.length} right`;
  }
}

for (const slider of document.querySelectorAll("input[type=range]")) slider.addEventListener("input", () => moved(slider));
dark.addEventListener("change", () => Object.keys(pictures).forEach(draw));
Promise.all(Object.keys(pictures).map(draw)).then(() => {
  document.querySelectorAll("input[type=range]").forEach(moved);
  document.documentElement.dataset.drawn = "all";
});
