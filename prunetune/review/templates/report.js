"use strict";
(() => {
  const NARROW = 560, PRINTED = { width: 690, height: 330 };
  const options = { responsive: true, displayModeBar: false, displaylogo: false };
  const figures = [];
  const lines = (text, longest) => {
    const out = [""];
    for (const word of text.replaceAll("<br>", " ").split(" ")) {
      const last = out[out.length - 1];
      if (last && last.length + word.length >= longest) out.push(word);
      else out[out.length - 1] = last ? `${last} ${word}` : word;
    }
    return out.join("<br>");
  };
  const fitted = (layout, width) => {
    const copy = JSON.parse(JSON.stringify(layout));
    if (width < NARROW) {
      copy.font = { ...copy.font, size: 11 };
      if (copy.legend) copy.legend.font = { size: 11 };
      if (copy.xaxis && copy.xaxis.tickangle) {
        copy.xaxis.tickangle = -90;
        copy.xaxis.tickfont = { size: 10 };
        copy.xaxis.ticktext = copy.xaxis.ticktext.map((text) => text.replaceAll("<br>", " "));
      }
      for (const note of copy.annotations || []) note.font = { ...note.font, size: 8 };
      for (const axis of ["xaxis", "yaxis"]) {
        const shown = copy[axis] && copy[axis].title;
        if (!shown) continue;
        shown.font = { size: 11 };
        shown.text = lines(shown.text, axis === "xaxis" ? width / 13 : layout.height / 9);
      }
    }
    return copy;
  };
  for (const source of document.querySelectorAll("script[data-figure]")) {
    const place = document.getElementById(source.dataset.figure);
    const { data, layout } = JSON.parse(source.textContent);
    place.style.minHeight = `${layout.height}px`;
    Plotly.newPlot(place, data, fitted(layout, place.clientWidth), options);
    figures.push([place, layout.height]);
  }
  // A printed page is narrower than most windows, and figures do not shrink by themselves.
  const size = (printed) => {
    for (const part of document.querySelectorAll("details.printed")) part.open = Boolean(printed);
    for (const [place, height] of figures) {
      const low = printed ? Math.min(height, printed.height) : height;
      place.style.minHeight = `${low}px`;
      const width = printed ? { autosize: false, width: printed.width } : { autosize: true, width: null };
      Plotly.relayout(place, { ...width, height: low });
    }
  };
  addEventListener("beforeprint", () => size(PRINTED));
  addEventListener("afterprint", () => size(null));
  document.documentElement.dataset.ready = String(figures.length);
})();
