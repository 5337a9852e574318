"use strict";
(() => {
  const LIGHT = { ink: "#1f2328", grid: "#e2e5e9", surface: "#ffffff" };
  const DARK = { ink: "#e4e7eb", grid: "#3a4048", surface: "#1b1f24" };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    displaylogo: false,
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  const withTheme = (layout, theme, width) => {
    const axis = (values) => ({ ...values, gridcolor: theme.grid, linecolor: theme.grid, tickcolor: theme.grid });
    return {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      font: { color: theme.ink, size: 13, family: "system-ui, sans-serif" },
      hoverlabel: { ...layout.hoverlabel, bgcolor: theme.surface, bordercolor: theme.grid, font: { color: theme.ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.grid, activecolor: theme.ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      autosize: width === undefined,
      width,
    };
  };
  const withInk = (trace, theme) =>
    trace.error_y ? { ...trace, error_y: { color: theme.ink, ...trace.error_y } } : trace;

  const drawOne = (id, theme, paper) => {
    const element = document.getElementById(id);
    const width = paper ? (element.classList.contains("small") ? 320 : 660) : undefined;
    const data = figures[id].data.map((trace) => withInk(trace, theme));
    Plotly.react(element, data, withTheme(figures[id].layout, theme, width), config);
  };
  const draw = (theme, paper) => {
    for (const id of Object.keys(figures)) drawOne(id, theme, paper);
  };
  const screenTheme = () => (dark.matches ? DARK : LIGHT);
  const drawScreen = () => draw(screenTheme(), false);
  drawScreen();
  // Not Plotly's own "responsive", which listens to the window: in a frame the plot's box changes without it.
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.clientWidth > 0) Plotly.Plots.resize(target);
  });
  for (const id of Object.keys(figures)) observer.observe(document.getElementById(id));
  dark.addEventListener("change", drawScreen);
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.print")) details.open = true;
    draw(LIGHT, true);
  });
  window.addEventListener("afterprint", drawScreen);

  // Drill-down: a problem's completions. Text of models only ever becomes text nodes.
  const shown = JSON.parse(document.getElementById("completions-data").textContent);
  if (shown === null) return;
  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    element.className = className;
    element.append(...children);
    return element;
  };
  const unpacked = new Map();
  const unpack = (number) => {
    if (!unpacked.has(number)) {
      const bytes = Uint8Array.from(atob(shown.blocks[number]), (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      unpacked.set(number, new Response(stream).json());
    }
    return unpacked.get(number);
  };
  const chooser = document.getElementById("problem");
  const which = document.getElementById("which");
  const detail = document.getElementById("problem-detail");
  const gain = (p) => Math.max(...shown.arms.map((arm) => shown.rates[arm][p])) - Math.min(...shown.arms.map((arm) => shown.rates[arm][p]));
  const order = shown.problem_ids.map((_, p) => p).sort((a, b) => gain(b) - gain(a) || a - b);
  for (const p of order) {
    const rates = shown.arms.map((arm) => `${arm} ${shown.rates[arm][p]} %`).join(", ");
    chooser.append(new Option(`${shown.problem_ids[p]}: ${rates}`, p));
  }

  const completion = ([times, correct, tokens, cutOff, answer, text]) => {
    const facts = [correct ? "Correct" : "Wrong", answer === null ? ", no answer" : `, answer ${answer}`, `, ${tokens} tokens`];
    if (cutOff) facts.push(", cut off at the length limit");
    if (times > 1) facts.push(`, ${times} times`);
    const pre = make("pre", "", text);
    pre.tabIndex = 0;
    return make("div", correct ? "completion right" : "completion wrong", make("div", "muted", ...facts), pre);
  };
  const show = async (p) => {
    const { prompt, arms } = (await unpack(Math.floor(p / shown.block_size)))[p % shown.block_size];
    if (Number(chooser.value) !== p) return; // another one was chosen meanwhile
    const wanted = which.value;
    const columns = arms.map((rows, i) => {
      const name = shown.arms[i];
      const kept = rows.filter((row) => wanted === "all" || (wanted === "correct") === Boolean(row[1]));
      const swatch = make("span", "swatch");
      swatch.style.background = shown.colours[name];
      const head = make("h3", "", swatch, `${name}, ${shown.rates[name][p]} % correct`);
      return make("div", "column", head, ...(kept.length ? kept.map(completion) : [make("p", "muted", "None.")]));
    });
    const title = make("h3", "", "Problem ", make("code", "", shown.problem_ids[p]));
    detail.replaceChildren(title, ...(prompt === null ? [] : [make("pre", "", prompt)]), make("div", "arms", ...columns));
  };
  const mark = (x, y) => {
    const trace = figures["per-problem"].data.at(-1);
    [trace.x, trace.y] = [[x], [y]];
    trace.marker.color = screenTheme().ink;
    drawOne("per-problem", screenTheme(), false);
  };
  const choose = (p, x, y) => {
    chooser.value = String(p);
    mark(x, y);
    show(p).catch((error) => detail.replaceChildren(make("p", "", `This browser cannot unpack the completions: ${error}`)));
  };
  const update = () => {
    if (chooser.value === "") return detail.replaceChildren();
    const p = Number(chooser.value);
    const trace = figures["per-problem"].data.find((each) => each.customdata && each.visible !== "legendonly");
    choose(p, trace.x[p], trace.y[p]);
  };
  chooser.addEventListener("change", update);
  which.addEventListener("change", update);
  document.getElementById("per-problem").on("plotly_click", ({ points: [point] }) => {
    if (point.customdata !== undefined) choose(point.customdata, point.x, point.y);
  });
})();
