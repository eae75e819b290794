"use strict";
(() => {
  const PAGE = 60;
  const byId = (id) => document.getElementById(id);
  const { metrics, images, near } = JSON.parse(byId("data").textContent);
  const grid = byId("cards");
  const cards = Array.from(grid.children);
  const controls = ["sort", "order", "true", "predicted", "right"].filter((name) => byId(name));
  const status = byId("status");
  const more = byId("more");
  const detail = byId("detail");
  // The prediction says as much as the accuracy of one image.
  const usual = metrics.find((name) => name !== "accuracy") || metrics[0];
  let large = null;  // enlarged images; parsed when the first of them is opened
  let found = [];
  let limit = PAGE;
  let place = 0;
  let arranged = null;  // the address of what is shown
  let isOurs = false;  // whether the previous entry of the browser's history is this page, too

  // The address holds the settings, so that it can be shared, and the back button works.

  const isOfPlace = () => location.hash.length > 1 && !location.hash.includes("=");  // #images

  function addressOf(image) {
    const state = new URLSearchParams();
    for (const name of controls) {
      const value = byId(name).value;
      if (value !== "" && !(name === "order" && value === "up")) state.set(name, value);
    }
    if (image !== null) state.set("image", image);
    return "#" + state;
  }

  function write(image) {
    history.replaceState(null, "", addressOf(image));
  }

  function read() {
    const state = new URLSearchParams(isOfPlace() ? "" : location.hash.slice(1));
    for (const name of controls) {
      const select = byId(name);
      const value = state.get(name) ?? (name === "order" ? "up" : "");
      select.value = value;
      if (select.selectedIndex < 0) select.selectedIndex = 0;
    }
    if (addressOf(null) !== arranged) arrange();
    const image = state.get("image");
    if (image !== null && /^\d+$/.test(image) && Number(image) < images.length) {
      let at = found.indexOf(Number(image));
      if (at < 0) {  // a filter hides it
        for (const name of controls.slice(2)) byId(name).value = "";
        arrange();
        at = found.indexOf(Number(image));
      }
      show(at);
      if (!detail.open) {
        detail.showModal();
        byId("close").focus();
      }
    } else {
      isOurs = false;
      if (detail.open) detail.close();
    }
  }

  const matching = {
    true: (of, value) => String(of.true) === value,
    predicted(of, value) {
      const [model, label] = value.split(".").map(Number);
      return of.predicted[model] === label;
    },
    right(of, value) {
      if (value === "right") return of.right.every((right) => right === true);
      if (value === "wrong") return of.right.every((right) => right === false);
      const model = Number(value.slice(4));  // only0
      return of.right.every((right, i) => right === (i === model));
    },
  };

  const matches = (of) => controls.slice(2).every((name) => {
    const wanted = byId(name).value;
    return wanted === "" || matching[name](of, wanted);
  });

  // Images without a value come last in either order; equal ones stay in the order of X.
  function comparing(valueOf, sign) {
    return (i, j) => {
      const a = valueOf(images[i]);
      const b = valueOf(images[j]);
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return sign * (a - b) || i - j;
    };
  }

  // A key stands for a value, a difference from the first column, or the confidence in an error.
  function valueBy(key) {
    const [i, k] = key.slice(1).split(".").map(Number);
    if (key[0] === "e") return (of) => of.error[i];
    if (key[0] === "v") return (of) => of.values[i][k];
    return (of) => {
      const [first, other] = [of.values[0][k], of.values[i][k]];
      return first === null || other === null ? null : other - first;
    };
  }

  // Cards that are not shown are not in the document, so that it stays small.
  function render() {
    grid.replaceChildren(...found.slice(0, limit).map((i) => cards[i]));
    const shown = Math.min(limit, found.length);
    status.textContent = `${shown} of ${found.length} images` +
      (found.length < images.length ? ` (${images.length} without filters)` : "");
    const left = found.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more`;
  }

  function arrange() {
    const key = byId("sort").value;
    const sign = byId("order").value === "up" ? 1 : -1;
    found = images.map((_, i) => i).filter((i) => matches(images[i]));
    if (key) found.sort(comparing(valueBy(key), sign));
    else if (sign < 0) found.reverse();
    const current = key && key[0] !== "e" ? metrics[Number(key.split(".")[1])] : usual;
    for (const row of cards.flatMap((card) => Array.from(card.querySelectorAll("[data-metric]")))) {
      row.classList.toggle("current", row.dataset.metric === current);
    }
    arranged = addressOf(null);
    limit = PAGE;
    render();
  }

  function look(opacity, isGrey) {
    for (const slider of document.querySelectorAll(".opacity")) slider.value = opacity;
    for (const box of document.querySelectorAll(".grey")) box.checked = isGrey;
    const style = document.documentElement.style;
    style.setProperty("--opacity", String(opacity / 100));
    style.setProperty("--grey", isGrey && opacity > 0 ? "1" : "0");
  }

  function element(kind, name, ...children) {
    const made = document.createElement(kind);
    if (name) made.className = name;
    made.append(...children);
    return made;
  }

  function boxes(i) {
    return images[i].boxes.map(([x1, y1, x2, y2]) => {
      const box = element("span", "box");
      const sides = { left: x1, top: y1, width: x2 - x1, height: y2 - y1 };
      for (const [side, share] of Object.entries(sides)) box.style[side] = `${100 * share}%`;
      return box;
    });
  }

  // An enlarged picture: the image, with or without a map, and with its boxes and its mask.
  function figure(i, stack, caption, map) {
    const copy = stack.cloneNode(true);
    const image = copy.querySelector(".image");
    if (large[i]) image.src = large[i];
    if (map === null) {
      copy.querySelector(".map").remove();
      image.classList.add("plain");
    } else if (map) {
      copy.querySelector(".map").src = map;
    }
    const mask = cards[i].querySelector(".mask");
    if (mask) {
      const outline = mask.cloneNode();
      outline.hidden = false;
      copy.append(outline);
    }
    copy.append(...boxes(i));
    return element("figure", "", element("div", "picture", copy), element("figcaption", "", caption));
  }

  function figures(i) {
    const card = cards[i];
    const stacks = Array.from(card.querySelectorAll(".picture .stack"));
    const made = [figure(i, stacks[0], "The image", null)];
    card.querySelectorAll(".side").forEach((side, k) => {
      const of = side.querySelector(".of")?.textContent;
      const prefix = of ? `${of}: ` : "";
      const explained = side.querySelector(".explained b") || side.querySelector(".predicted b");
      const why = explained ? `Why ${explained.textContent}?` : "Where the network looks";
      made.push(figure(i, stacks[k], prefix + why, ""));
      if (side.dataset.truth) {  // the network is wrong: explain the true class, too
        const truth = card.querySelector(".true b").textContent;
        made.push(figure(i, stacks[k], `${prefix}Why ${truth}?`, side.dataset.truth));
      }
    });
    return made;
  }

  // The nearest images, for each network that embeds them.
  function neighbours(i, of) {
    const list = element("ul", "near");
    for (const j of images[i].near[of]) {
      const link = element("a", "", cards[j].querySelector(".stack").cloneNode(true));
      link.href = addressOf(j);
      const name = cards[j].querySelector("h3").textContent;
      const label = cards[j].querySelector(".true b, .predicted b");
      link.setAttribute("aria-label", `Enlarge ${name}`);
      list.append(element("li", "", link, element("span", "said", label ? label.textContent : name)));
    }
    const whose = near[of] ? `The nearest images, by ${near[of]}` : "The nearest images";
    return element("div", "", element("h3", "", whose), list);
  }

  // Use the number of columns that makes the pictures the largest: wide ones are stacked.
  function lay(pictures) {
    const n = pictures.childElementCount;
    const ratio = Number(pictures.querySelector(".stack").style.getPropertyValue("--ratio"));
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const width = innerWidth - (innerWidth > 50 * rem ? 20 : 2) * rem;  // beside the text
    const widthIn = (columns) => {
      const height = (innerHeight - 5 * rem) / Math.ceil(n / columns) - 2 * rem;
      return Math.min(width / columns, height * ratio);
    };
    let best = n;
    for (let columns = n - 1; columns > 0; columns--) {
      if (widthIn(columns) > 1.05 * widthIn(best)) best = columns;
    }
    pictures.style.setProperty("--n", best);
    pictures.style.setProperty("--rows", Math.ceil(n / best));
  }

  function show(at) {
    place = at;
    const i = found[at];
    const card = cards[i];
    large ??= JSON.parse(byId("large").textContent);
    const pictures = element("div", "pictures", ...figures(i));
    lay(pictures);
    const heading = element("h2", "", card.querySelector("h3").textContent);
    heading.id = "detail-name";
    const text = element("div", "text", heading);
    const truth = card.querySelector(".card > .labels");
    if (truth) text.append(truth.cloneNode(true));
    text.append(card.querySelector(".sides").cloneNode(true));
    text.append(...images[i].near.map((_, of) => neighbours(i, of)));
    byId("detail-card").replaceChildren(pictures, text);
    byId("place").textContent = `${at + 1} of ${found.length}`;
    byId("previous").disabled = at === 0;
    byId("next").disabled = at === found.length - 1;
  }

  function open(i) {
    isOurs = true;
    location.hash = addressOf(i);  // a new entry, to go back from; its event shows the image
  }

  function step(by) {
    const next = place + by;
    if (next < 0 || next >= found.length) return;
    write(found[next]);
    show(next);
  }

  // Closes by going back to where the image was opened, so that going back later does not reopen it.
  function leave() {
    const goesBack = isOurs;
    isOurs = false;
    if (goesBack) history.back();
    else write(null);
    if (detail.open) detail.close();
  }

  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".picture");
    if (button) open(Number(button.closest(".card").dataset.index));
  });
  document.addEventListener("click", (event) => {
    const address = event.target.closest("a[href^='#']")?.getAttribute("href");
    if (!address) return;
    if (!address.includes("=")) {  // to the images; the address stays
      event.preventDefault();
      byId("images").focus();
    } else if (detail.open) {  // a neighbour: Back leads to where the first image was opened
      event.preventDefault();
      history.replaceState(null, "", address);
      read();
    } else if (address.includes("image=")) {
      isOurs = true;
    } else {
      byId("images").scrollIntoView();
    }
  });
  detail.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;  // arrows move the slider there
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
  detail.addEventListener("click", (event) => {
    if (event.target === detail) leave();  // a click outside it
  });
  detail.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  detail.addEventListener("close", () => {
    if (place >= limit) {
      limit = Math.ceil((place + 1) / PAGE) * PAGE;
      render();
    }
    cards[found[place]].querySelector(".picture").focus();
  });
  byId("close").addEventListener("click", leave);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  more.addEventListener("click", () => {
    const first = limit;
    limit += PAGE;
    render();
    cards[found[first]].querySelector(".picture").focus();
  });
  byId("sort").addEventListener("change", (event) => {
    if (event.target.value[0] === "e") byId("order").value = "down";  // the surest first
  });
  for (const name of controls) {
    byId(name).addEventListener("change", () => {
      write(null);
      arrange();
    });
  }
  for (const slider of document.querySelectorAll(".opacity")) {
    slider.addEventListener("input", () => look(Number(slider.value), byId("grey").checked));
  }
  for (const box of document.querySelectorAll(".grey")) {
    box.addEventListener("change", () => look(Number(byId("opacity").value), box.checked));
  }
  addEventListener("resize", () => detail.open && lay(detail.querySelector(".pictures")));
  addEventListener("hashchange", () => isOfPlace() || read());

  document.documentElement.classList.add("js");
  look(Number(byId("opacity").value), byId("grey").checked);
  read();
})();
