"use strict";
(() => {
  const NARROW = 560, PRINTED = 690;
  const options = { responsive: true, displayModeBar: false, displaylogo: false };
  const figures = [];
  const fitted = (layout, width) => {
    const copy = JSON.parse(JSON.stringify(layout));
    if (width < NARROW) {
      copy.font = { ...copy.font, size: 11 };
      if (copy.legend) copy.legend.font = { size: 11 };
      for (const axis of ["xaxis", "yaxis"]) {
        const shown = copy[axis] && copy[axis].title;
        if (shown) shown.font = { size: 11 };
      }
    }
    return copy;
  };
  for (const source of document.querySelectorAll("script[data-figure]")) {
    const place = document.getElementById(source.dataset.figure);
    const { data, layout } = JSON.parse(source.textContent);
    place.style.minHeight = `${layout.height}px`;
    Plotly.newPlot(place, data, fitted(layout, place.clientWidth), options);
    figures.push(place);
  }
  // A printed page is narrower than most windows, and figures do not shrink by themselves.
  const size = (width) => {
    for (const place of figures) {
      Plotly.relayout(place, width ? { autosize: false, width } : { autosize: true, width: null });
    }
  };
  addEventListener("beforeprint", () => size(PRINTED));
  addEventListener("afterprint", () => size(null));
  document.documentElement.dataset.ready = String(figures.length);
})();
