"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const items = new Map(data.items.map((item) => [item.id, item]));
  const place = `sklcam-study-${data.study}`;
  const form = byId("question");
  const ofTwo = data.kind === "class";
  let state = null;
  let since = 0;
  let isKept = true;

  // All that is random for a rater follows from one seed, which is kept with the answers.
  function draws(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function begun() {
    const [seed, ...name] = crypto.getRandomValues(new Uint32Array(3));
    const draw = draws(seed);
    const order = Array.from(items.keys());
    for (let i = order.length - 1; i > 0; i -= 1) {
      const j = Math.floor(draw() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    const swapped = Object.fromEntries(order.map((id) => [id, draw() < 0.5]));
    const drawn = name.map((part) => part.toString(16).padStart(8, "0")).join("");
    return { rater: drawn, drawn, seed, order, swapped, answers: {}, at: 0,
      started: new Date().toISOString(), is_over: false };
  }

  // Between visits

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
      isKept = true;
    } catch {
      isKept = false;
    }
  }

  function kept() {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      const isOfThis = found && found.order.length === items.size &&
        found.order.every((id) => items.has(id));
      return isOfThis ? found : null;
    } catch {
      isKept = false;
      return null;
    }
  }

  // Screens

  const answered = () => state.order.filter((id) => id in state.answers).length;
  const questions = (n) => `${n} question${n === 1 ? "" : "s"}`;

  function only(shown) {
    for (const id of ["start", "question", "end"]) byId(id).hidden = id !== shown;
    window.scrollTo(0, 0);
  }

  function showStart() {
    byId("attentive").hidden = !data.items.some((item) => item.note);
    byId("number").textContent = questions(items.size);
    byId("kept").textContent = isKept
      ? "Your answers are kept in this browser. You can close the page and continue later."
      : "Your answers cannot be kept in this browser. Please do not close the page before the end.";
    if (state) {
      byId("code").value = state.rater === state.drawn ? "" : state.rater;
      byId("begin").textContent = state.is_over ? "Continue" : `Continue with question ${state.at + 1}`;
      byId("anew").hidden = false;
    }
    byId("removed").textContent = "";
    only("start");
  }

  function picture(uri, name, caption) {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.addEventListener("load", () => {
      image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 64);
    });
    image.src = uri;
    image.alt = name;
    if (caption) {
      const text = document.createElement("figcaption");
      text.textContent = caption;
      figure.append(text);
    }
    figure.append(image);
    return figure;
  }

  function shownOf(item, isSwapped) {
    if (item.note) {
      const note = document.createElement("p");
      note.id = "check";
      note.textContent = item.note;
      return [note];
    }
    if (ofTwo) return [picture(item.images[0], "The picture that the question is about")];
    const uris = isSwapped ? [...item.images].reverse() : item.images;
    return uris.map((uri, i) => picture(uri, `Explanation by model ${i + 1}`, `Model ${i + 1}`));
  }

  // The value of each answer, as the file has it, and its words.
  function choices(item, isSwapped) {
    if (ofTwo) {
      const pairs = item.options.map((words, i) => [i, words]);
      return isSwapped ? pairs.reverse() : pairs;
    }
    // Not -0, which JSON cannot write.
    return data.scale.map(([value, words]) => [isSwapped ? 0 - value : value, words]);
  }

  function option([value, words], i) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    const text = document.createElement("span");
    const key = document.createElement("kbd");
    radio.type = "radio";
    radio.name = "answer";
    radio.value = String(value);
    text.textContent = words;
    key.textContent = String(i + 1);
    key.setAttribute("aria-hidden", "true");
    label.append(radio, text, key);
    return label;
  }

  function showQuestion() {
    const id = state.order[state.at];
    const item = items.get(id);
    const isSwapped = swaps(item);
    const given = state.answers[id];
    form.dataset.item = id;
    byId("progress").max = items.size;
    byId("progress").value = answered();
    byId("place").textContent = `Question ${state.at + 1} of ${items.size}`;
    byId("asked").textContent = item.asked;
    byId("shown").replaceChildren(...shownOf(item, isSwapped));
    const labels = choices(item, isSwapped).map(option);
    byId("options").replaceChildren(...labels);
    for (const radio of radios()) radio.checked = given?.value === Number(radio.value);
    byId("keys").textContent = `Keys: 1 ${labels.length > 2 ? "to" : "and"} ${labels.length} choose, Enter continues.`;
    byId("back").disabled = state.at === 0;
    byId("next").disabled = !given;
    byId("next").textContent = state.at + 1 < items.size ? "Next" : "Finish";
    since = performance.now();
    only("question");
    byId("asked").focus();
  }

  // A check about models names the side to choose, so its sides stay.
  const swaps = (item) => state.swapped[item.id] && (ofTwo || !item.note);
  const radios = () => Array.from(form.querySelectorAll("input"));

  function showEnd() {
    const n = answered();
    byId("summary").textContent = n === items.size
      ? "That was the last question. Please save your answers, and hand in the file."
      : `You have answered ${n} of ${questions(items.size)}. Save your answers now, or continue.`;
    byId("return").textContent = n === items.size ? "Review my answers" : "Continue";
    byId("another").hidden = true;
    byId("saved").textContent = "";
    only("end");
    byId("thanks").focus();
  }

  function show() {
    if (state.is_over) showEnd();
    else showQuestion();
  }

  // Answers

  function choose(value) {
    const item = items.get(state.order[state.at]);
    const now = performance.now();
    const before = state.answers[item.id]?.seconds ?? 0;
    const seconds = Math.round(1000 * before + now - since) / 1000;
    state.answers[item.id] = { item: item.id, value, swapped: swaps(item), seconds };
    since = now;
    state.is_saved = false;
    byId("next").disabled = false;
    keep();
  }

  function step(by) {
    state.at = Math.min(Math.max(state.at + by, 0), items.size - 1);
    keep();
    showQuestion();
  }

  function next() {
    if (!(state.order[state.at] in state.answers)) return;
    if (state.at + 1 < items.size) {
      step(1);
      return;
    }
    state.is_over = true;
    keep();
    showEnd();
  }

  function save() {
    const found = {
      format: "sklcam-study-answers", version: 1, study: data.study, kind: data.kind,
      rater: state.rater, seed: state.seed, started: state.started,
      saved: new Date().toISOString(), order: state.order,
      answers: state.order.filter((id) => id in state.answers).map((id) => state.answers[id]),
    };
    const text = JSON.stringify(found, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `answers-${data.study}-${state.rater.replace(/[^\p{L}\p{N}._-]+/gu, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    state.is_saved = true;
    keep();
    byId("saved").textContent = `Saved as ${link.download}, among your browser's downloads.`;
    byId("another").hidden = false;
  }

  // Actions of the rater

  byId("begin").addEventListener("click", () => {
    state ??= begun();
    state.rater = byId("code").value.trim() || state.drawn;
    keep();
    show();
  });
  // Answers that are not saved are removed only by a second click.
  byId("anew").addEventListener("click", () => {
    const n = state.is_saved ? 0 : answered();
    if (n && !byId("removed").textContent) {
      byId("removed").textContent = `${n} answer${n === 1 ? " is" : "s are"} not saved yet, and ` +
        "will be lost. To start over anyway, choose “Start over” once more.";
      return;
    }
    state = begun();
    state.rater = byId("code").value.trim() || state.drawn;
    keep();
    show();
  });
  byId("options").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("back").addEventListener("click", () => step(-1));
  byId("stop").addEventListener("click", () => {
    state.is_over = true;
    keep();
    showEnd();
  });
  byId("save").addEventListener("click", save);
  byId("return").addEventListener("click", () => {
    state.is_over = false;
    keep();
    showQuestion();
  });
  byId("another").addEventListener("click", () => {
    state = null;
    try {
      localStorage.removeItem(place);
    } catch {
      isKept = false;
    }
    byId("code").value = "";
    byId("begin").textContent = "Begin";
    byId("anew").hidden = true;
    showStart();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    next();
  });
  // Keys count only while the focus is in the question, so that they do not get in the way.
  form.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const chosen = radios()[Number(event.key) - 1];
    if (chosen) {
      chosen.checked = true;
      choose(Number(chosen.value));
    } else if (event.key === "Enter" && !event.repeat && event.target.tagName !== "BUTTON") {
      event.preventDefault();  // or its radio would submit the form once more
      next();
    }
  });
  window.addEventListener("beforeunload", (event) => {
    if (state && !isKept && !state.is_saved && answered()) event.preventDefault();
  });

  state = kept();
  if (!state) {
    // Can answers be kept? Another key is tried, as a busy browser may be late to find theirs.
    try {
      localStorage.setItem(`${place}-tried`, "");
      localStorage.removeItem(`${place}-tried`);
    } catch {
      isKept = false;
    }
  }
  showStart();
})();
