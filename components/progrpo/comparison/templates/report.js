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
    trace.error_y ? { ...trace, error_y: { ...trace.error_y, color: theme.ink } } : trace;

  const draw = (theme, paper) => {
    for (const [id, figure] of Object.entries(figures)) {
      const element = document.getElementById(id);
      const width = paper ? (element.classList.contains("small") ? 320 : 660) : undefined;
      const data = figure.data.map((trace) => withInk(trace, theme));
      Plotly.react(element, data, withTheme(figure.layout, theme, width), config);
    }
  };
  const drawScreen = () => draw(dark.matches ? DARK : LIGHT, false);
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
})();
