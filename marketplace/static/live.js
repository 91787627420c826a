// Keeps the page up to date: the server says that something moved, the page's inside is fetched again.
"use strict";

const inside = document.getElementById("live");
const connection = document.getElementById("connection");
let fetching = false;
let again = false;

function show(text, lost) {
  connection.hidden = false;
  connection.textContent = text;
  connection.classList.toggle("lost", lost);
}

async function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  try {
    const answer = await fetch("/live");
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    inside.innerHTML = await answer.text(); // rendered and escaped by the server
    show("live", false);
  } catch (error) {
    show(`not up to date (${error.message})`, true);
  } finally {
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

const source = new EventSource("/stream");
source.addEventListener("open", () => show("live", false));
source.addEventListener("error", () => show("connection lost, trying again", true));
source.addEventListener("change", refresh);
