// The page of `dissim serve`: a photo or a row of the gallery is the query, the results are pictures with scores.

const $ = (id) => document.getElementById(id);
const ITEMS_AT_A_TIME = 24;

let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token") ?? "";
let info = null;
let query = null; // {photo: File} or {id}
let running = null; // the AbortController of the search that is under way
let start = 0; // of the next items

class Failure extends Error {}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Failure("The service does not answer.");
  });
  if (response.ok) return response;
  if (response.status === 401) askForToken(token ? "The service has another token." : "");
  const text = await response.text();
  let detail = text;
  try { detail = JSON.parse(text).detail; } catch {} // not JSON: the text itself
  throw new Failure(detail || `The service answered with status ${response.status}.`);
}

function askForToken(problem) {
  $("denied").textContent = problem;
  $("access").hidden = false;
  $("content").hidden = true;
}

// Numbers of JavaScript hold no id beyond 2^53, so integers beyond it become text.
const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
const exact = (token) => (/^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token);
const parse = (text) => JSON.parse(text.replace(STRING_OR_NUMBER, exact));

const json = async (path, options) => parse(await (await call(path, options)).text());

function post(path, body, signal) {
  if (body instanceof FormData) return json(path, { method: "POST", body, signal });
  return json(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

// --- pictures ---------------------------------------------------------------------------------------------------

// An <img> cannot send a token, so pictures are fetched when they come into view.
const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    thumbnail(target.dataset.id).then((url) => showPicture(target, url), () => target.append("no picture"));
  }
}, { rootMargin: "200px" });

const thumbnails = new Map(); // id -> promise of a URL

function thumbnail(id) {
  if (!info.photos) return Promise.reject();
  if (!thumbnails.has(id)) {
    thumbnails.set(id, call(`api/thumbnail?id=${encodeURIComponent(id)}`).then((r) => r.blob()).then(URL.createObjectURL));
  }
  return thumbnails.get(id);
}

function showPicture(frame, url) {
  const image = element("img", "");
  image.src = url;
  image.alt = "";
  frame.replaceChildren(image);
}

function card(id, ...captions) {
  const frame = element("span", "frame");
  frame.dataset.id = id;
  inView.observe(frame);
  const button = element("button", "", frame, ...captions);
  button.type = "button";
  button.title = `Search with ${id}`;
  button.dataset.query = id;
  button.addEventListener("click", () => choose({ id }));
  return element("li", "", button);
}

// --- search -----------------------------------------------------------------------------------------------------

function choose(chosen) {
  query = chosen;
  const shown = $("shown");
  if (shown.dataset.own) URL.revokeObjectURL(shown.dataset.own);
  delete shown.dataset.own;
  shown.hidden = true;
  $("hint").hidden = false;
  const show = (url) => {
    shown.src = url;
    shown.hidden = false;
    $("hint").hidden = true;
  };
  if (chosen.photo) show(shown.dataset.own = URL.createObjectURL(chosen.photo));
  else thumbnail(chosen.id).then((url) => query === chosen && show(url), () => {});
  $("drop").classList.add("has-photo");
  $("described").textContent = chosen.photo ? chosen.photo.name : chosen.id;
  for (const button of document.querySelectorAll("[data-query]")) {
    button.setAttribute("aria-pressed", button.dataset.query === String(chosen.id));
  }
  search();
}

async function search() {
  if (!query || !$("query").reportValidity()) return;
  running?.abort();
  const mine = running = new AbortController();
  const options = { k: Number($("k").value), metadata: true };
  if ($("filter").value.trim()) options.filter = $("filter").value;
  say("Searching ...");
  const begin = performance.now();
  try {
    let answer;
    if (query.photo) {
      const form = new FormData();
      form.append("image", query.photo);
      for (const [name, value] of Object.entries(options)) form.append(name, value);
      answer = await post("api/search/image", form, mine.signal);
    } else {
      answer = await post("api/search", { id: query.id, ...options }, mine.signal);
    }
    const count = answer.results.length;
    $("results").replaceChildren(...answer.results.map(result));
    say(count ? `The ${count} best rows in ${Math.round(performance.now() - begin)} ms. A higher score means "same".`
      : options.filter ? "No row satisfies the filter." : "The gallery has no rows.");
  } catch (error) {
    if (error.name === "AbortError") return; // another search has begun
    $("results").replaceChildren();
    say(error.message, true);
  }
}

function result({ id, score, metadata }, place) {
  const data = Object.entries(metadata ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
  const line = element("span", "score", element("b", "", `${place + 1}.`), score === null ? "" : score.toFixed(3));
  return card(id, line, element("span", "id", String(id)), element("span", "data", data));
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// --- gallery ----------------------------------------------------------------------------------------------------

async function showItems() {
  if ($("more").disabled) return; // the items are under way
  $("more").disabled = true;
  try {
    const { ids, next } = await json(`api/items?start=${start}&count=${ITEMS_AT_A_TIME}`);
    $("items").append(...ids.map((id) => card(id, element("span", "id", String(id)))));
    start = next ?? start;
    $("more").hidden = next === null;
  } finally {
    $("more").disabled = false;
  }
}

async function load() {
  try {
    info = await json("api/info");
  } catch (error) {
    return say(error.message, true);
  }
  $("access").hidden = true;
  $("content").hidden = false;
  say("Choose a photo, or an image of the gallery.");
  document.title = `Search in ${info.name}`;
  $("name").textContent = info.name;
  $("facts").textContent = `${info.rows.toLocaleString("en")} rows of ${info.dim} numbers, version ${info.version}`;
  $("k").max = info.max_k;
  const columns = Object.keys(info.columns);
  const name = columns.includes("label") ? "label" : "id";
  const type = info.columns[name] ?? "";
  const example = type.includes("string") ? `${name} LIKE 'a%'` : type === "bool" ? name : `${name} = 3`;
  $("columns").replaceChildren("Columns: ", element("code", "", columns.join(", ")), ". A condition in SQL, as ", element("code", "", example));
  if (info.image_search !== null) {
    $("photo").disabled = true;
    $("drop").classList.add("off");
    $("hint").textContent = "This gallery has no network that could embed a photo. Pick an image below.";
  }
  $("items").replaceChildren();
  start = 0;
  await showItems().catch((error) => say(error.message, true));
}

$("query").addEventListener("submit", (event) => event.preventDefault());
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  load();
});
$("photo").addEventListener("change", () => $("photo").files.length && choose({ photo: $("photo").files[0] }));
for (const name of ["k", "filter"]) $(name).addEventListener("change", search);
$("more").addEventListener("click", () => showItems().catch((error) => say(error.message, true)));

// A photo may be dropped anywhere on the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const photo = [...event.dataTransfer.files].find((file) => file.type.startsWith("image/"));
  if (photo && !$("photo").disabled) choose({ photo });
});

if (location.hash) history.replaceState(null, "", location.pathname); // the token does not stay in the address
if (token) sessionStorage.setItem("token", token);
load();
