import { Chat } from "./chat.js";
import { Server, TokenTexts } from "./server.js";

const KEY = "vllm-dllm.key";
const part = (id) => document.getElementById(id);

const model = part("model");
const key = part("key");
const message = part("message");
key.value = sessionStorage.getItem(KEY) ?? "";

const server = new Server(() => key.value);
const texts = new TokenTexts(
  (token) => server.textOf(model.value, token),
  () => chats.forEach((chat) => chat.redraw()),
);
const announce = (line) => (part("status").textContent = line);
const chats = ["A", "B"].map((name) => new Chat(name, server, texts, announce));

function shownChats() {
  return chats.filter((chat) => !chat.element.hidden);
}

async function send(event) {
  event.preventDefault();
  const content = message.value.trim();
  if (!content || !part("stop").hidden) return;
  message.value = "";
  fitMessage();
  setRunning(true);
  announce("Denoising.");
  const asked = shownChats().map((chat) =>
    chat.send(content, model.value, part("system").value.trim()),
  );
  const answered = await Promise.all(asked);
  setRunning(false);
  if (!answered.some(Boolean) && !message.value) message.value = content;
  fitMessage();
}

function setRunning(isRunning) {
  const hadFocus = part("composer").contains(document.activeElement);
  part("send").hidden = isRunning;
  part("stop").hidden = !isRunning;
  part("compare").disabled = isRunning;
  if (hadFocus) message.focus();
}

function stop() {
  chats.forEach((chat) => chat.stop());
}

function compare() {
  const [first, second] = chats;
  const isOn = second.element.hidden;
  if (isOn) second.adopt(first);
  second.element.hidden = !isOn;
  part("columns").classList.toggle("two", isOn);
  part("compare").setAttribute("aria-pressed", isOn);
  for (const chat of chats) chat.settings.element.open = isWide();
}

function fitMessage() {
  message.rows = Math.min(6, message.value.split("\n").length);
}

function isWide() {
  return matchMedia("(min-width: 60rem)").matches;
}

async function loadModels() {
  try {
    const names = await server.models();
    model.replaceChildren(...names.map((name) => new Option(name)));
    part("problem").hidden = true;
  } catch (error) {
    part("problem").textContent = error.message;
    part("problem").hidden = false;
    part("setup").open = true;
  }
  showModel();
}

function showModel() {
  part("model-name").textContent = model.value || "No model";
}

chats[1].element.hidden = true;
chats[0].settings.element.open = isWide();
part("columns").append(...chats.map((chat) => chat.element));
part("composer").addEventListener("submit", send);
part("stop").addEventListener("click", stop);
part("compare").addEventListener("click", compare);
part("clear").addEventListener("click", () => {
  chats.forEach((chat) => chat.clear());
  message.focus();
});
model.addEventListener("change", showModel);
key.addEventListener("change", () => {
  sessionStorage.setItem(KEY, key.value);
  loadModels();
});
message.addEventListener("input", fitMessage);
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  part("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
loadModels();
