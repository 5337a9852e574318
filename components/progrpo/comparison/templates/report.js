"use strict";
(() => {
  const LIGHT = { ink: "#1f2328", grid: "#e2e5e9", surface: "#ffffff" };
  const DARK = { ink: "#e4e7eb", grid: "#3a4048", surface: "#1b1f24" };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

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
  dark.addEventListener("change", drawScreen);
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.print")) details.open = true;
    draw(LIGHT, true);
  });
  window.addEventListener("afterprint", drawScreen);
})();
