"use strict";

// One table of feature maps for each detector: sorting, choice of the generator, and details on a click.
document.querySelectorAll(".maps").forEach((section) => {
  const data = JSON.parse(document.getElementById(section.dataset.source).textContent);
  const body = section.querySelector("tbody");
  const rows = Array.from(body.querySelectorAll("tr.map"));
  const select = section.querySelector("select");
  const headers = Array.from(section.querySelectorAll("thead th"));

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function onGenerator(map) {
    return data.maps[map].generators[select.value];
  }

  function value(row, column) {
    const map = Number(row.dataset.map);
    const entry = data.maps[map];
    const here = onGenerator(map);
    return {rank: map, name: entry.order, omega: entry.omega, paired: here.paired, mood: here.mood, shift: here.shift,
      count: entry.count}[column];
  }

  function number(x, digits) {
    return x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(1) : String(Number(x.toPrecision(digits)));
  }

  // A page that stands alone has no other files to lead to.
  function linked(file, picture) {
    return data.single_file ? picture : element("a", {href: data.files[file]}, picture);
  }

  function close() {
    body.querySelectorAll("tr.detail").forEach((row) => row.remove());
    rows.forEach((row) => {
      row.classList.remove("open");
      row.querySelector("button").setAttribute("aria-expanded", "false");
    });
  }

  function patchList(here) {
    const list = element("ul", {className: "patches"});
    here.patches.forEach((patch, place) => {
      const picture = element("img", {src: data.files[patch.patch], alt: "patch of rank " + (place + 1), loading: "lazy"});
      const image = element("img", {src: data.files[patch.image], alt: "its image", className: "whole", loading: "lazy"});
      list.append(element("li", {},
        picture,
        element("span", {textContent: "max " + number(patch.max, 3) + ", " + patch.size + " px"}),
        linked(patch.image, image),
        element("span", {textContent: patch.name})));
    });
    return list;
  }

  function testTable(entry) {
    const head = element("tr", {});
    ["generator", "p, adjusted", "shift", "effect", "Mood's p", "median, colour", "median, greyscale"].forEach((title, place) =>
      head.append(element("th", {textContent: title, scope: "col", className: place ? "number" : ""})));
    const lines = element("tbody", {});
    data.names.forEach((name, place) => {
      const test = entry.generators[place];
      const line = element("tr", {}, element("th", {textContent: name, scope: "row"}));
      [[test.paired, 2], [test.shift, 3], [test.effect, 2], [test.mood, 2], [test.rgb, 4], [test.grey, 4]].forEach(
        ([x, digits]) => line.append(element("td", {textContent: number(x, digits), className: "number"})));
      lines.append(line);
    });
    const scroll = element("div", {className: "scroll", tabIndex: 0}, element("table", {},
      element("caption", {}, element("span", {textContent: "Tests of this map on every generator (effect: rank-biserial correlation, -1 to 1)"})),
      element("thead", {}, head), lines));
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Tests of this map on every generator");
    return scroll;
  }

  function verdict(here) {
    if (here.paired > data.level) {
      return "The paired test does not show that it looks at colour.";
    }
    return "It looks at colour: without, its response to the same image is mostly "
      + (here.effect > 0 ? "weaker." : "stronger.");
  }

  function open(row) {
    close();
    const map = Number(row.dataset.map);
    const entry = data.maps[map];
    const here = onGenerator(map);
    const name = data.names[select.value];
    const content = element("div", {className: "detail-content"},
      element("p", {}, element("strong", {textContent: entry.key}), " on the fakes of " + name + ". ",
        here.collage ? element("a", {href: here.collage, textContent: "Collage (PDF)"}) : ""));
    if (here.patches.length) {
      content.append(element("p", {textContent: "Above, the part of the image that the map's largest activation depends "
        + "on; below, the whole image: look for what the parts have in common."}), patchList(here));
    } else {
      content.append(element("p", {textContent: "No patches: none of its images could be read."}));
    }
    if (here.histogram !== null) {
      content.append(element("figure", {},
        linked(here.histogram, element("img", {src: data.files[here.histogram],
          alt: "Histograms of the map's largest activations in colour and in greyscale"})),
        element("figcaption", {textContent: "How strongly the map responds to each fake in colour and in greyscale. "
          + verdict(here)})));
    }
    content.append(testTable(entry));
    const detail = element("tr", {className: "detail"},
      element("td", {colSpan: headers.length}, content));
    row.after(detail);
    row.classList.add("open");
    row.querySelector("button").setAttribute("aria-expanded", "true");
  }

  function toggle(row) {
    if (row.classList.contains("open")) {
      close();
    } else {
      open(row);
    }
  }

  function fill() {
    const opened = rows.find((row) => row.classList.contains("open"));
    rows.forEach((row) => {
      const here = onGenerator(Number(row.dataset.map));
      const p = row.querySelector(".paired");
      p.textContent = number(here.paired, 2);
      p.classList.toggle("conditional", here.paired <= data.level);
      row.querySelector(".mood").textContent = number(here.mood, 2);
      row.querySelector(".shift").textContent = number(here.shift, 3);
    });
    const sorted = headers.find((header) => header.hasAttribute("aria-sort"));
    if (sorted) {
      sort(sorted, sorted.getAttribute("aria-sort"));
    }
    if (opened) {
      open(opened);
    }
  }

  function sort(header, direction) {
    const column = header.dataset.column;
    const sign = direction === "ascending" ? 1 : -1;
    const opened = rows.find((row) => row.classList.contains("open"));
    close();
    rows.sort((a, b) => sign * (value(a, column) - value(b, column)) || a.dataset.map - b.dataset.map);
    body.append(...rows);
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", direction);
    if (opened) {
      open(opened);
    }
  }

  headers.forEach((header) => {
    header.querySelector("button").addEventListener("click", () => {
      const first = header.dataset.first || "ascending";
      const current = header.getAttribute("aria-sort");
      const other = first === "ascending" ? "descending" : "ascending";
      sort(header, current === first ? other : first);
    });
  });
  rows.forEach((row) => row.addEventListener("click", () => toggle(row)));
  select.addEventListener("change", fill);
  section.classList.add("ready");
});
