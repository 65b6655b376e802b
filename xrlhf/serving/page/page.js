"use strict";

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the server

const IN_FLIGHT = 8;

/** Scores of answers to one prompt, in their order. Both are text or lists of messages. */
async function scoresOf(prompt, answers) {
  const messages = typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt;
  const responses = answers.map((answer) => (typeof answer === "string" ? [{ role: "assistant", content: answer }] : answer));
  const headers = { "Content-Type": "application/json" };
  if ($("key") && $("key").value) headers.Authorization = "Bearer " + $("key").value;
  let reply;
  try {
    reply = await fetch("v1/rewards", { method: "POST", headers, body: JSON.stringify({ inputs: [{ prompt: messages, responses }] }) });
  } catch {
    throw new Error("The server does not answer.");
  }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error((body.error && (body.error.message || body.error)) || "The server says " + reply.status + ".");
  return body.results[0].scores;
}

/** Runs `work` on all items, some at a time, and reports how many are done. */
async function forAll(items, work, onDone) {
  let next = 0, done = 0;
  const results = new Array(items.length);
  async function run() {
    while (next < items.length) {
      const mine = next++;
      results[mine] = await work(items[mine]);
      onDone(++done);
    }
  }
  await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, items.length) }, run));
  return results;
}

// ---------------------------------------------------------------- words and files

/** What a prompt or an answer looks like to a reader. */
function textOf(value) {
  if (typeof value === "string") return value;
  const several = value.length > 1;
  return value.map((message) => (several ? message.role + ": " : "") + textOfContent(message.content)).join("\n\n");
}

function textOfContent(content) {
  return typeof content === "string" ? content : (content || []).map((part) => part.text || "[" + part.type + "]").join("");
}

/** Where each sentence ends, so that the pieces put together are the text. */
function sentencesOf(text) {
  if (typeof Intl !== "undefined" && Intl.Segmenter)
    return Array.from(new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text), (part) => part.segment).filter(Boolean);
  return text.match(/[^.!?\n]+[.!?\n]*\s*|[.!?\n]+\s*/g) || [];
}

function rowsOf(text, name) {
  const rows = [];
  text.split(/\r?\n/).forEach((line, index) => {
    if (!line.trim()) return;
    let row;
    try {
      row = JSON.parse(line);
    } catch {
      throw new Error(name + ", line " + (index + 1) + ": not valid JSON.");
    }
    if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error(name + ", line " + (index + 1) + ": not an object.");
    rows.push({ row, where: name + ", line " + (index + 1) });
  });
  if (!rows.length) throw new Error(name + " holds no row.");
  return rows;
}

const isAnswer = (value) => typeof value === "string" || Array.isArray(value);

/** Rows with one answer each: what one model said. */
function answersOf(text, name) {
  return rowsOf(text, name).map(({ row, where }) => {
    const response = row.response !== undefined ? row.response : (row.responses || [])[0];
    if (!isAnswer(row.prompt) || !isAnswer(response)) throw new Error(where + ": expected prompt and response.");
    return { prompt: row.prompt, response };
  });
}

/** Pairs from one file of pairs. */
function pairsOf(text, name) {
  return rowsOf(text, name).map(({ row, where }) => {
    const both = row.responses !== undefined ? row.responses : [row.chosen, row.rejected];
    if (!Array.isArray(both) || both.length !== 2 || !both.every(isAnswer))
      throw new Error(where + ": expected two answers, as chosen and rejected or as responses.");
    if (isAnswer(row.prompt)) return { prompt: row.prompt, answers: both };
    const shared = sharedTurns(both);
    if (!shared) throw new Error(where + ": expected a prompt, or two conversations that begin alike.");
    return { prompt: both[0].slice(0, shared), answers: both.map((turns) => turns.slice(shared)) };
  });
}

/** How many turns two conversations share, when each goes on after them; 0 where that is not so. */
function sharedTurns([a, b]) {
  if (!Array.isArray(a) || !Array.isArray(b)) return 0;
  let shared = 0;
  while (shared < Math.min(a.length, b.length) - 1 && JSON.stringify(a[shared]) === JSON.stringify(b[shared])) shared++;
  return shared;
}

/** Pairs from two models' answers to the same prompts; those that only one has are counted. */
function joined(first, second) {
  const byPrompt = new Map();
  for (const item of second) {
    const key = JSON.stringify(item.prompt);
    byPrompt.set(key, [...(byPrompt.get(key) || []), item]);
  }
  const pairs = [];
  for (const item of first) {
    const found = (byPrompt.get(JSON.stringify(item.prompt)) || []).shift();
    if (found) pairs.push({ prompt: item.prompt, answers: [item.response, found.response] });
  }
  if (!pairs.length) throw new Error("The two files share no prompt.");
  return { pairs, alone: first.length + second.length - 2 * pairs.length };
}

async function fileText(id) {
  const [file] = $(id).files;
  return file ? { text: await file.text(), name: file.name } : null;
}

// ---------------------------------------------------------------- the page

function say(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

/** Runs what a form asks for, once at a time, and says what went wrong. */
function onSubmit(form, status, work) {
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = $(form).querySelector("button[type=submit]");
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      say(status, error.message, true);
    } finally {
      button.disabled = false;
    }
  });
}

const tabs = Array.from(document.querySelectorAll("[role=tab]"));

function choose(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", "#" + tab.getAttribute("aria-controls"));
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});
choose(tabs.find((tab) => "#" + tab.getAttribute("aria-controls") === location.hash) || tabs[0]);

// ---------------------------------------------------------------- rank

function addAnswer() {
  const number = $("rank-answers").children.length + 1;
  const field = element("textarea", { id: "rank-answer-" + number, rows: 3 });
  $("rank-answers").append(element("label", { htmlFor: field.id, textContent: "Answer " + number }, field));
  return field;
}

addAnswer();
addAnswer();
$("rank-add").addEventListener("click", () => addAnswer().focus());

onSubmit("rank-form", "rank-status", async () => {
  const prompt = $("rank-prompt").value;
  const answers = Array.from($("rank-answers").querySelectorAll("textarea"), (field) => field.value).filter((text) => text.trim());
  if (!answers.length) throw new Error("Write at least one answer.");
  say("rank-status", "Scoring ...");
  const scores = await scoresOf(prompt, answers);
  const order = answers.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  const low = Math.min(...scores), range = Math.max(...scores) - low;
  $("rank-results").replaceChildren(
    ...order.map((index) => {
      const share = range ? 10 + (90 * (scores[index] - low)) / range : 100;
      const text = element("pre", { textContent: answers[index] });
      const button = element("button", { type: "button", textContent: "Score after each sentence" });
      button.addEventListener("click", () => showSentences(prompt, answers[index], text, button));
      const bar = element("span");
      bar.style.width = share + "%";
      return element(
        "li", {},
        element("div", { className: "score", textContent: scores[index].toFixed(4) + "  (answer " + (index + 1) + ")" }),
        element("div", { className: "bar", ariaHidden: "true" }, bar),
        text, button,
      );
    }),
  );
  say("rank-status", answers.length === 1 ? "One answer, scored." : answers.length + " answers, best first.");
});

/** The score of the answer up to the end of each sentence: all of them are answers to one prompt, computed once. */
async function showSentences(prompt, answer, place, button) {
  button.disabled = true;
  try {
    const parts = sentencesOf(answer);
    const prefixes = parts.map((_, index) => parts.slice(0, index + 1).join(""));
    const scores = await scoresOf(prompt, prefixes);
    place.replaceChildren(
      ...parts.flatMap((part, index) => {
        const change = index ? scores[index] - scores[index - 1] : 0;
        const kind = index && change ? (change > 0 ? " up" : " down") : "";
        return [
          element("span", { className: "sentence" + kind, textContent: part.trimEnd() }),
          element("span", { className: "soft", textContent: " [" + scores[index].toFixed(3) + "] " }),
        ];
      }),
    );
    button.remove();
  } catch (error) {
    say("rank-status", error.message, true);
    button.disabled = false;
  }
}

// ---------------------------------------------------------------- compare

onSubmit("compare-form", "compare-status", async () => {
  const sides = [];
  for (const [side, name] of [["a", "First model"], ["b", "Second model"]]) {
    const file = await fileText("compare-file-" + side);
    sides.push(file ? answersOf(file.text, file.name) : answersOf($("compare-" + side).value, name));
  }
  const { pairs, alone } = joined(...sides);
  const scores = await forAll(
    pairs,
    (pair) => scoresOf(pair.prompt, pair.answers),
    (done) => say("compare-status", "Scoring " + done + " of " + pairs.length + " ..."),
  );
  const wins = [0, 0, 0];
  let sum = 0;
  const rows = pairs.map((pair, index) => {
    const margin = scores[index][1] - scores[index][0];
    wins[margin > 0 ? 1 : margin < 0 ? 0 : 2]++;
    sum += margin;
    return { ...pair, scores: scores[index], margin };
  });
  rows.sort((a, b) => Math.abs(b.margin) - Math.abs(a.margin));
  const cell = (text) => element("td", { textContent: text });
  const table = element(
    "table", {},
    element("caption", { textContent: "Prompts, the largest difference first" }),
    element("thead", {}, element("tr", {}, ...["Prompt", "First", "Second", "Difference"].map((text) => element("th", { scope: "col", textContent: text })))),
    element("tbody", {}, ...rows.map((row) =>
      element("tr", {},
        element("th", { scope: "row" },
          element("details", {},
            element("summary", { textContent: textOf(row.prompt).slice(0, 90) }),
            element("strong", { textContent: "First" }), element("pre", { textContent: textOf(row.answers[0]) }),
            element("strong", { textContent: "Second" }), element("pre", { textContent: textOf(row.answers[1]) }))),
        cell(row.scores[0].toFixed(3)), cell(row.scores[1].toFixed(3)), cell((row.margin > 0 ? "+" : "") + row.margin.toFixed(3))))),
  );
  $("compare-results").replaceChildren(element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Differences" }, table));
  say(
    "compare-status",
    "Of " + pairs.length + " prompts the first model's answer scores higher in " + wins[0] + ", the second's in " + wins[1] +
      (wins[2] ? ", equal in " + wins[2] : "") + "; mean difference " + (sum / pairs.length).toFixed(3) +
      (alone ? ". " + alone + " answers have no partner and were left out." : "."),
  );
});

// ---------------------------------------------------------------- label

/** The labels being made: pairs, which side each answer stands on, and what was chosen: "1", "2", "0" or "s". */
let labels = null;

onSubmit("label-form", "label-status", async () => {
  const first = await fileText("label-file-a"), second = await fileText("label-file-b");
  if (!first) throw new Error("Choose a file.");
  const found = second
    ? joined(answersOf(first.text, first.name), answersOf(second.text, second.name))
    : { pairs: pairsOf(first.text, first.name), alone: 0 };
  labels = {
    name: first.name.replace(/\.[^.]*$/, ""),
    // A coin for every pair, so that no side is the better one by habit.
    pairs: found.pairs.map((pair) => ({ ...pair, left: Math.random() < 0.5 ? 0 : 1 })),
    choices: [],
    scores: [],
    alone: found.alone,
  };
  show();
  $("label-work").querySelector("button").focus({ preventScroll: true });
});

function show() {
  const place = labels.choices.length, done = place === labels.pairs.length;
  const counts = (kind) => labels.choices.filter((choice) => kind.includes(choice)).length;
  say(
    "label-status",
    (done ? "All " + labels.pairs.length + " pairs are done" : "Pair " + (place + 1) + " of " + labels.pairs.length) +
      ": " + counts("12") + " decided, " + counts("0") + " equal, " + counts("s") + " skipped" +
      (labels.alone ? "; " + labels.alone + " answers have no partner and were left out." : "."),
  );
  $("label-work").hidden = false;
  for (const key of ["1", "2", "0", "s"]) $("label-" + key).disabled = done;
  $("label-u").disabled = !place;
  $("label-save").disabled = !counts("12");
  $("label-after").hidden = !place;
  if (!done) {
    const pair = labels.pairs[place];
    $("label-prompt").textContent = textOf(pair.prompt);
    $("label-left").textContent = textOf(pair.answers[pair.left]);
    $("label-right").textContent = textOf(pair.answers[1 - pair.left]);
  } else {
    for (const part of ["prompt", "left", "right"]) $("label-" + part).textContent = "";
  }
  showAgreement();
}

/** The answer that was chosen of a pair, 0 or 1; null for none. */
function chosenOf(index) {
  const { left } = labels.pairs[index], choice = labels.choices[index];
  return choice === "1" ? left : choice === "2" ? 1 - left : null;
}

function showAgreement() {
  const decided = labels.choices.map((_, index) => index).filter((index) => chosenOf(index) !== null);
  const known = decided.filter((index) => labels.scores[index]);
  const agree = known.reduce((sum, index) => {
    const scores = labels.scores[index], chosen = chosenOf(index);
    return sum + (scores[chosen] > scores[1 - chosen] ? 1 : scores[chosen] === scores[1 - chosen] ? 0.5 : 0);
  }, 0);
  const last = labels.choices.length - 1;
  let text = known.length ? "You and the model agree in " + agree + " of " + known.length + " pairs (" + ((100 * agree) / known.length).toFixed(0) + " %)." : "";
  if (last >= 0 && chosenOf(last) !== null && labels.scores[last]) {
    const scores = labels.scores[last], chosen = chosenOf(last);
    text += " The last: yours " + scores[chosen].toFixed(3) + ", the other " + scores[1 - chosen].toFixed(3) + ".";
  }
  $("label-agreement").textContent = text;
}

async function decide(choice) {
  const index = labels.choices.length, mine = labels;
  if (index >= mine.pairs.length) return;
  mine.choices.push(choice);
  show();
  if (choice !== "1" && choice !== "2") return;
  try {
    if (!mine.scores[index]) mine.scores[index] = await scoresOf(mine.pairs[index].prompt, mine.pairs[index].answers);
    if (labels === mine) showAgreement();
  } catch (error) {
    // Labels are worth keeping without the model's opinion.
    $("label-agreement").textContent = "The model's opinion is missing: " + error.message;
  }
}

function undo() {
  if (!labels.choices.length) return;
  labels.choices.pop();
  show();
}

for (const key of ["1", "2", "0", "s"]) $("label-" + key).addEventListener("click", () => decide(key));
$("label-u").addEventListener("click", undo);

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("textarea, input, select");
  if (!labels || $("label").hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (["1", "2", "0", "s"].includes(key)) decide(key);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});

/** A pair as a row of preferences: messages, the better answer first. */
function rowOf(index) {
  const { prompt, answers } = labels.pairs[index], chosen = chosenOf(index);
  const asMessages = (value, role) => (typeof value === "string" ? [{ role, content: value }] : value);
  return {
    prompt: asMessages(prompt, "user"),
    chosen: asMessages(answers[chosen], "assistant"),
    rejected: asMessages(answers[1 - chosen], "assistant"),
  };
}

$("label-save").addEventListener("click", () => {
  const lines = labels.choices.map((_, index) => index).filter((index) => chosenOf(index) !== null).map((index) => JSON.stringify(rowOf(index)) + "\n");
  const link = element("a", { href: URL.createObjectURL(new Blob(lines, { type: "application/jsonl" })), download: labels.name + "_labels.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
  labels.saved = labels.choices.length;
});

window.addEventListener("beforeunload", (event) => {
  if (labels && labels.choices.length > (labels.saved || 0)) event.preventDefault();
});
