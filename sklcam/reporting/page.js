"use strict";
(() => {
  const PAGE = 60;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const grid = byId("cards");
  const cards = Array.from(grid.children);
  const sort = byId("sort");
  const order = byId("order");
  const filters = ["true", "predicted", "right"].filter((name) => byId(name));
  const status = byId("status");
  const more = byId("more");
  const errors = byId("errors");  // no name of its own, as a metric may have any
  const detail = byId("detail");
  const names = Array.from(sort.options, (option) => option.value).filter(Boolean);
  // The prediction says as much as the accuracy of one image.
  const usual = names.find((name) => name !== "accuracy") || names[0];
  let found = [];
  let limit = PAGE;
  let place = 0;

  const matches = (of) => filters.every((name) => {
    const wanted = byId(name).value;
    return wanted === "" || String(of[name]) === wanted;
  });

  // Images without a value come last in either order; equal ones stay in the order of X.
  function comparing(valueOf, sign) {
    return (i, j) => {
      const a = valueOf(data[i]);
      const b = valueOf(data[j]);
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return sign * (a - b) || i - j;
    };
  }

  // Cards that are not shown are not in the document, so that it stays small.
  function render() {
    grid.replaceChildren(...found.slice(0, limit).map((i) => cards[i]));
    const shown = Math.min(limit, found.length);
    status.textContent = `${shown} of ${found.length} images` +
      (found.length < data.length ? ` (${data.length} without filters)` : "");
    const left = found.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more`;
  }

  function arrange() {
    const name = sort.value;
    const sign = order.value === "up" ? 1 : -1;
    found = data.map((_, i) => i).filter((i) => matches(data[i]));
    if (errors?.selected) found.sort(comparing((of) => of.error, sign));
    else if (name) found.sort(comparing((of) => of.values[name], sign));
    else if (sign < 0) found.reverse();
    const current = name || usual;
    for (const row of cards.flatMap((card) => Array.from(card.querySelectorAll("[data-metric]")))) {
      row.classList.toggle("current", row.dataset.metric === current);
    }
    limit = PAGE;
    render();
  }

  function setOpacity(value) {
    for (const slider of document.querySelectorAll(".opacity")) slider.value = value;
    const style = document.documentElement.style;
    style.setProperty("--opacity", String(value / 100));
    style.setProperty("--grey", byId("grey").checked && value > 0 ? "1" : "0");
  }

  function framed(stack, caption) {
    const figure = document.createElement("figure");
    const picture = document.createElement("div");
    picture.className = "picture";
    picture.append(stack);
    figure.append(picture);
    if (caption) {
      const words = document.createElement("figcaption");
      words.textContent = caption;
      figure.append(words);
    }
    return figure;
  }

  function show(i) {
    place = i;
    const card = cards[found[i]];
    const pictures = document.createElement("div");
    pictures.className = "pictures";
    const stack = card.querySelector(".stack");
    if (card.dataset.truth) {  // the network is wrong: why, and why the true class
      const truth = stack.cloneNode(true);
      truth.querySelector(".map").src = card.dataset.truth;
      const [predicted, right] = [".predicted b", ".true b"].map((part) => card.querySelector(part).textContent);
      pictures.append(framed(stack.cloneNode(true), `Why ${predicted}?`), framed(truth, `Why ${right}?`));
    } else {
      pictures.append(framed(stack.cloneNode(true)));
    }
    const text = document.createElement("div");
    const heading = document.createElement("h2");
    heading.id = "detail-name";
    heading.textContent = card.querySelector("h3").textContent;
    text.append(heading);
    for (const part of card.querySelectorAll(".labels, .values")) text.append(part.cloneNode(true));
    byId("detail-card").replaceChildren(pictures, text);
    byId("place").textContent = `${i + 1} of ${found.length}`;
    byId("previous").disabled = i === 0;
    byId("next").disabled = i === found.length - 1;
  }

  function step(by) {
    const next = place + by;
    if (next >= 0 && next < found.length) show(next);
  }

  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".picture");
    if (!button) return;
    show(found.indexOf(Number(button.closest(".card").dataset.index)));
    detail.showModal();
    byId("close").focus();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;  // arrows move the slider there
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
  detail.addEventListener("click", (event) => {
    if (event.target === detail) detail.close();  // beside it
  });
  detail.addEventListener("close", () => {
    if (place >= limit) {
      limit = Math.ceil((place + 1) / PAGE) * PAGE;
      render();
    }
    cards[found[place]].querySelector(".picture").focus();
  });
  byId("close").addEventListener("click", () => detail.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  more.addEventListener("click", () => {
    const first = limit;
    limit += PAGE;
    render();
    cards[found[first]].querySelector(".picture").focus();
  });
  sort.addEventListener("change", () => {
    if (errors?.selected) order.value = "down";  // the surest first, which arrange() reads
  });
  for (const id of ["sort", "order", ...filters]) byId(id).addEventListener("change", arrange);
  for (const slider of document.querySelectorAll(".opacity")) {
    slider.addEventListener("input", () => setOpacity(Number(slider.value)));
  }
  byId("grey").addEventListener("change", () => setOpacity(Number(byId("opacity").value)));

  document.documentElement.classList.add("js");
  setOpacity(Number(byId("opacity").value));
  arrange();
})();
