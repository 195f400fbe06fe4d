const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const byId = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-cell]")];
let shown = null;

// A grid holds columns of values over every combination of its axes, the last running fastest.
function rows(grid) {
  let places = [{}];
  for (const [name, values] of Object.entries(grid.axes)) {
    places = places.flatMap((place) => values.map((value) => ({ ...place, [name]: value })));
  }
  const columns = Object.entries(grid.values);
  return places
    .map((place, at) => Object.assign(place, ...columns.map(([name, v]) => ({ [name]: v[at] }))))
    .filter((row) => columns.some(([name]) => row[name] !== null));
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function draw(parent, title, spec, wide = false) {
  const figure = element("figure", "", wide ? "wide" : "");
  const place = element("div");
  figure.append(element("h3", title), place);
  figure.setAttribute("aria-label", title);
  parent.append(figure);
  const config = data.themes[dark.matches ? "dark" : "light"];
  const theme = dark.matches ? "dark" : "light";
  return vegaEmbed(place, spec, { config, actions: false, renderer: "svg", tooltip: { theme } });
}

function drawAcross() {
  byId("across").replaceChildren();
  return Promise.all(
    data.across.map(({ title, spec, wide }) => draw(byId("across"), title, spec, wide)),
  );
}

function drawWithin(cell) {
  byId("cell-figures").replaceChildren();
  return Promise.all(
    Object.entries(cell.figures).map(([name, grids]) => {
      const { title, spec } = data.within[name];
      const filled = { ...spec, datasets: { [name]: grids.flatMap(rows) } };
      return draw(byId("cell-figures"), title, filled);
    }),
  );
}

function verdictBlock(verdict, runs) {
  const block = element("div", "", `verdict ${verdict.name}`);
  const heading = element("h3", [verdict.name, verdict.level].filter(Boolean).join(" · "));
  if (runs > 1) heading.textContent += ` · ${verdict.runs} of ${runs} runs`;
  block.append(heading, element("p", verdict.finding), element("p", verdict.advice));
  return block;
}

function show(at) {
  shown = at;
  const cell = data.cells[at];
  buttons.forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.cell) === at)));
  byId("cell-title").textContent = cell.label;
  const blocks = cell.verdicts.map((verdict) => verdictBlock(verdict, cell.runs.length));
  byId("cell-verdicts").replaceChildren(...blocks);
  const config = Object.entries(cell.config);
  byId("cell-config").replaceChildren(
    ...config.flatMap(([key, value]) => [element("dt", key), element("dd", value)]),
  );
  byId("cell-runs").replaceChildren(...cell.runs.map((run) => element("li", run)));
  return drawWithin(cell);
}

function choose(button) {
  history.replaceState(null, "", `#${button.id}`);
  show(Number(button.dataset.cell));
}

// Arrow keys walk over the cells as they stand in the table.
function walk(event) {
  const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!(event.key in move)) return;
  const [down, right] = move[event.key];
  const place = event.target.closest("td");
  const row = place.parentElement.parentElement.rows[place.parentElement.sectionRowIndex + down];
  const next = row?.cells[place.cellIndex + right]?.querySelector("button");
  if (next) next.focus();
  event.preventDefault();
}

for (const button of buttons) {
  button.addEventListener("click", () => choose(button));
  button.addEventListener("keydown", walk);
}
dark.addEventListener("change", () => Promise.all([show(shown), drawAcross()]));
const linked = buttons.find((button) => `#${button.id}` === location.hash);
await Promise.all([show(linked ? Number(linked.dataset.cell) : data.first), drawAcross()]);
document.documentElement.dataset.ready = "true";
