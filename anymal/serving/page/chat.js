// The chat page: no library, no storage, no address but this server's.
const $ = (id) => document.getElementById(id);
const NOUNS = { image: "picture", audio: "sound", video: "clip", imu: "motion" };
const ENDINGS = {
  image: ["png", "jpg", "jpeg", "webp", "gif", "bmp"], audio: ["wav", "flac", "mp3", "ogg", "m4a", "aac", "opus"],
  video: ["mp4", "webm", "mkv", "mov", "avi", "mpeg", "mpg"], imu: ["csv", "npy"],
};
const state = { turns: [], files: [], running: null, counts: {}, limits: null, reads: [] };

class Refusal extends Error {}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function modalityOf(file) {
  const kind = file.type.split("/")[0];
  const ending = file.name.toLowerCase().split(".").pop();
  const byEnding = Object.keys(ENDINGS).find((name) => ENDINGS[name].includes(ending));
  return byEnding ?? (["image", "audio", "video"].includes(kind) ? kind : null);
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name}: cannot be read`));
    reader.readAsDataURL(file);
  });
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function errorOf(response) {
  try {
    const { error } = await response.json();
    const wait = response.headers.get("retry-after");
    return error.message + (wait ? ` (in ${wait} s)` : "");
  } catch {
    return `the server answered ${response.status} ${response.statusText}`;
  }
}

// --- files of the question ---------------------------------------------------------------------------------------------------------

async function add(files) {
  complain("");
  for (const file of files) {
    const modality = modalityOf(file);
    if (!modality) { complain(`${file.name}: is no picture, sound, clip or motion recording (CSV or NPY)`); continue; }
    if (state.reads.length && !state.reads.includes(modality)) { complain(`${file.name}: this model reads ${state.reads.join(", ")}`); continue; }
    if (state.limits && file.size > state.limits.medium_bytes) {
      complain(`${file.name}: has ${(file.size / 2 ** 20).toFixed(1)} MiB, more than ${state.limits.medium_bytes / 2 ** 20} MiB`);
      continue;
    }
    try {
      const data = await base64Of(file);
      const number = state.counts[modality] = (state.counts[modality] ?? 0) + 1;
      const entry = { modality, name: file.name, type: file.type, data, mark: `[${NOUNS[modality]} ${number}]`, preview: null };
      state.files.push(entry);
      showFiles();
      $("announcer").textContent = `${entry.name} added as ${entry.mark}`;
      const response = await fetch("preview", {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ modality, name: file.name, data }) });
      if (!response.ok) throw new Error(await errorOf(response));
      entry.preview = URL.createObjectURL(await response.blob());
      showFiles();
    } catch (error) {
      state.files = state.files.filter((one) => one.name !== file.name || one.preview);
      showFiles();
      complain(error.message);
    }
  }
}

function figure(entry) {
  const made = element("figure");
  if (entry.preview) {
    const seen = { image: "as the model sees it", audio: "spectrogram, as the model hears it", video: "frames, as the model sees them", imu: "traces, as the model feels them" };
    made.append(element("img", { src: entry.preview, alt: `${entry.name}, ${seen[entry.modality]}` }));
  }
  if (entry.modality === "audio") made.append(element("audio", { controls: true, src: `data:${entry.type || "audio/wav"};base64,${entry.data}` }));
  made.append(element("figcaption", { textContent: `${entry.mark} ${entry.name}` }));
  return made;
}

function showFiles() {
  const rows = state.files.map((entry, place) => {
    const move = (by) => () => {
      state.files.splice(place + by, 0, ...state.files.splice(place, 1));
      showFiles();
      $("files").children[place + by].querySelector("button").focus();
    };
    const insert = () => {
      const box = $("text"), at = box.selectionStart;
      box.setRangeText(entry.mark, at, box.selectionEnd, "end");
      box.focus();
    };
    const drop = () => { state.files.splice(place, 1); showFiles(); $("text").focus(); };
    const button = (textContent, label, onclick, disabled = false) => {
      const made = element("button", { type: "button", textContent, onclick, disabled });
      made.setAttribute("aria-label", `${label} ${entry.mark}`);
      return made;
    };
    return element("li", {}, figure(entry), element("div", { className: "moves" },
      button("Into text", "Name in the text", insert), button("←", "Move to the left:", move(-1), place === 0),
      button("→", "Move to the right:", move(1), place === state.files.length - 1), button("Remove", "Remove", drop)));
  });
  $("files").replaceChildren(...rows);
}

// --- what is sent ------------------------------------------------------------------------------------------------------------------

function partOf(entry, data) {
  const uri = (kind) => ({ url: `data:${entry.type || kind};base64,${data}` });
  switch (entry.modality) {
    case "image": return { type: "image_url", image_url: uri("image/png") };
    case "video": return { type: "video_url", video_url: uri("video/mp4") };
    case "audio": return { type: "input_audio", input_audio: { data, format: entry.name.split(".").pop().toLowerCase() } };
    default: return { type: "imu", imu: { data, format: entry.name.toLowerCase().endsWith(".npy") ? "npy" : "csv" } };
  }
}

// Files named in the text stand there; the others come first.
function partsOf(turn, dataOf) {
  const marks = new Map(turn.files.map((entry) => [entry.mark, entry]));
  const named = new Set(), texts = [];
  for (const piece of turn.text.split(/(\[(?:picture|sound|clip|motion) \d+\])/)) {
    const entry = marks.get(piece);
    if (entry && !named.has(piece)) { named.add(piece); texts.push(partOf(entry, dataOf(entry))); }
    else if (piece.trim()) texts.push({ type: "text", text: piece.trim() });
  }
  return [...turn.files.filter((entry) => !named.has(entry.mark)).map((entry) => partOf(entry, dataOf(entry))), ...texts];
}

function bodyOf(turns, dataOf = (entry) => entry.data) {
  return {
    model: state.model, stream: true, stream_options: { include_usage: true },
    messages: turns.map((turn) => ({ role: turn.role, content: turn.role === "user" ? partsOf(turn, dataOf) : turn.text })),
  };
}

function curlOf(turns) {
  const quoted = JSON.stringify({ ...bodyOf(turns, (entry) => `\u0000${entry.name}\u0000`), stream: false, stream_options: undefined }, null, 1)
    .replaceAll("'", "'\\''").replace(/\\u0000(.*?)\\u0000/g, (_, name) => `'"$(base64 < '${name}' | tr -d '\\n')"'`);
  return `curl ${new URL("v1/chat/completions", document.baseURI)} -H 'content-type: application/json' -d '${quoted}'`;
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer was cut short: the connection ended");
    left += value;
    let end;
    while ((end = left.indexOf("\n\n")) >= 0) {
      const line = left.slice(0, end);
      left = left.slice(end + 2);
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(turns, onText, onHead, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(bodyOf(turns)), signal });
  if (!response.ok) throw new Error(await errorOf(response));
  let finish = null, refusal = "", used = null;
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    onHead(event.model);
    used = event.usage ?? used;
    const [choice] = event.choices;
    if (!choice) continue;
    if (choice.delta.content) onText(choice.delta.content);
    refusal += choice.delta.refusal ?? "";
    finish = choice.finish_reason ?? finish;
  }
  if (refusal) throw new Refusal(refusal);
  return { finish, used };
}

// --- the conversation --------------------------------------------------------------------------------------------------------------

// The form stands over the end of the page: a row is to be seen above it.
function reveal(row) {
  row.style.scrollMarginBottom = `${$("composer").offsetHeight + 8}px`;
  row.scrollIntoView({ block: "nearest" });
}

function showTurn(turn) {
  const said = element("p", { className: "said", textContent: turn.text });
  const row = element("li", { className: turn.role }, element("p", { className: "who", textContent: turn.role === "user" ? "You" : "AnyMAL" }));
  if (turn.files?.length) row.append(element("div", { className: "media" }, ...turn.files.map(figure)));
  row.append(said);
  $("talk").append(row);
  $("start").hidden = true;
  $("new").hidden = false;
  reveal(row);
  return { row, said };
}

function busy(running) {
  state.running = running;
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("new").disabled = Boolean(running);
}

async function send(event) {
  event?.preventDefault();
  const text = $("text").value.trim();
  if (state.running) return;
  if (!text && !state.files.length) { complain("Write a question or add a file."); $("text").focus(); return; }
  if (state.files.some((entry) => !entry.preview)) { complain("A file is still being read."); return; }
  complain("");
  const turn = { role: "user", text, files: state.files };
  const turns = [...state.turns, turn];
  showTurn(turn);
  state.files = [];
  $("text").value = "";
  showFiles();
  const running = new AbortController();
  busy(running);
  const { row, said } = showTurn({ role: "assistant", text: "" });
  said.classList.add("waiting");
  let answer = "", model = "", note = "";
  const started = performance.now();
  try {
    const { finish, used } = await ask(turns, (piece) => { answer += piece; said.textContent = answer; reveal(row); },
      (name) => { model = name; }, running.signal);
    state.turns = [...turns, { role: "assistant", text: answer }];
    note = `${used ? `${used.completion_tokens} tokens, ` : ""}${((performance.now() - started) / 1000).toFixed(1)} s${finish === "length" ? ", cut at its greatest length" : ""}`;
    $("announcer").textContent = `Answer: ${answer}`;
  } catch (error) {
    // What was asked is not part of the conversation that goes on: the model must not build on what was refused or failed.
    const stopped = error.name === "AbortError";
    row.classList.add(error instanceof Refusal ? "refused" : stopped ? "stopped" : "failed");
    if (!stopped) said.textContent = `${answer}${answer ? "\n" : ""}${error.message}`;
    note = error instanceof Refusal ? "refused; not part of the conversation" : stopped ? "stopped; not part of the conversation" : "failed";
    $("announcer").textContent = `${note}: ${stopped ? answer : error.message}`;
  } finally {
    said.classList.remove("waiting");
    const copy = element("button", { type: "button", textContent: "Copy as cURL" });
    copy.onclick = async () => {
      try { await navigator.clipboard.writeText(curlOf(turns)); copy.textContent = "Copied"; } catch { copy.textContent = "The browser does not allow it"; }
      setTimeout(() => { copy.textContent = "Copy as cURL"; }, 2000);
    };
    row.append(element("div", { className: "below" }, element("span", { textContent: [model, note].filter(Boolean).join(" · ") }), copy));
    busy(null);
    $("text").focus();
    reveal(row);
  }
}

// --- start -------------------------------------------------------------------------------------------------------------------------

async function example(entry) {
  state.files = [];
  showFiles();
  const files = [];
  for (const name of entry.files) {
    const response = await fetch(`page/examples/${name}`);
    files.push(new File([await response.blob()], name, { type: response.headers.get("content-type") ?? "" }));
  }
  await add(files);
  $("text").value = entry.question;
  $("text").focus();
}

async function begin() {
  for (;;) {
    const response = await fetch("v1/about").catch(() => null);
    if (response?.ok) {
      const about = await response.json();
      Object.assign(state, { model: about.model, limits: about.limits, reads: about.reads });
      $("status").textContent = `${about.label} answers. It reads ${about.reads.map((name) => `${NOUNS[name] ?? name}s`).join(", ")}.`;
      const buttons = about.examples.filter((entry) => entry.modalities.every((name) => about.reads.includes(name))).map((entry) => {
        const button = element("button", { type: "button" }, entry.question || "(no question: describe it)", element("small", { textContent: entry.files.join(", ") }));
        button.onclick = () => example(entry);
        return element("li", {}, button);
      });
      $("examples").replaceChildren(...buttons);
      return;
    }
    $("status").textContent = response ? `No model yet: ${await errorOf(response)}` : "The server does not answer.";
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

$("composer").addEventListener("submit", send);
$("attach").onclick = () => $("pick").click();
$("pick").onchange = () => { add([...$("pick").files]); $("pick").value = ""; };
$("stop").onclick = () => state.running?.abort();
$("new").onclick = () => { state.turns = []; state.files = []; state.counts = {}; $("talk").replaceChildren(); $("start").hidden = false; $("new").hidden = true; showFiles(); complain(""); $("text").focus(); };
$("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); });
document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) { event.preventDefault(); add([...event.clipboardData.files]); } });
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); document.body.classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); add([...event.dataTransfer.files]); });
begin();
