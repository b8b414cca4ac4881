"use strict";
(() => {
  const NARROW = 560, PRINTED = { width: 690, height: 330 };
  const options = { responsive: true, displayModeBar: false, displaylogo: false };
  const figures = new Map();
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
    figures.set(place, { place, source, drawn: false });
  }
  // Compiling plotly.js takes longer than all the rest of the page: the page is shown first. An
  // inline script, as the page's policy forbids eval.
  let loaded = false;
  const load = () => {
    if (loaded) return;
    loaded = true;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    script.remove();
  };
  const tell = () => {
    const all = [...figures.values()];
    if (all.every((x) => x.drawn)) document.documentElement.dataset.ready = String(all.length);
  };
  const near = new Set();
  const draw = (figure) => {
    near.delete(figure);
    if (figure.drawn) return;
    figure.drawn = true;
    load();
    const { data, layout } = JSON.parse(figure.source.textContent);
    figure.layout = layout;
    Plotly.newPlot(figure.place, data, fitted(layout, figure.place.clientWidth), options);
    tell();
  };
  // A task each, so that the page answers in between.
  const step = (figure) => (loaded ? draw(figure) : load());

  // Figures in or near the window, the nearest first, after the frame that shows the text around
  // them.
  const away = ({ place }) => {
    const { top, bottom } = place.getBoundingClientRect();
    return Math.max(0, top - innerHeight, -bottom);
  };
  const next = () => {
    const [figure] = [...near].sort((a, b) => away(a) - away(b));
    if (!figure) return;
    setTimeout(next);
    step(figure);
  };
  const soon = () => requestAnimationFrame(() => setTimeout(next));
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) near.add(figures.get(target));
      else near.delete(figures.get(target));
    }
    if (near.size) soon();
  }, { rootMargin: "50% 0px" });
  for (const place of figures.keys()) watch.observe(place);

  // The others when the browser has nothing to do. Safari has no requestIdleCallback.
  const idle = window.requestIdleCallback || ((call) => setTimeout(call, 50));
  const rest = () => {
    const figure = [...figures.values()].find((x) => !x.drawn);
    if (!figure) return;
    idle(rest);
    step(figure);
  };
  addEventListener("load", () => idle(rest));

  // A printed page is narrower than most windows, and figures do not shrink by themselves.
  const size = (printed) => {
    for (const part of document.querySelectorAll("details.printed")) part.open = Boolean(printed);
    for (const { place, layout } of figures.values()) {
      const low = printed ? Math.min(layout.height, printed.height) : layout.height;
      place.style.minHeight = `${low}px`;
      const width = printed ? { autosize: false, width: printed.width } : { autosize: true, width: null };
      const shown = printed ? layout : fitted(layout, place.clientWidth);
      const title = shown.yaxis && shown.yaxis.title && shown.yaxis.title.text;
      const text = title && { "yaxis.title.text": printed ? lines(title, low / 16) : title };
      Plotly.relayout(place, { ...width, ...text, height: low });
    }
  };
  addEventListener("beforeprint", () => {
    figures.forEach(draw);
    size(PRINTED);
  });
  addEventListener("afterprint", () => size(null));
  tell();
})();
