// SPDX-License-Identifier: Apache-2.0
// Keeps the status page fresh. Without this script the page is complete, only not live.

const PERIOD_MS = 5000;
const state = document.getElementById("state");
const stale = document.getElementById("stale");
let fresh = new Date();

async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch(state.dataset.url, { redirect: "error" });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    state.innerHTML = await response.text();
    fresh = new Date();
    stale.hidden = true;
  } catch {
    stale.textContent = `Last update ${fresh.toLocaleTimeString()}, trying again`;
    stale.hidden = false;
  }
}

if (state) setInterval(refresh, PERIOD_MS);
