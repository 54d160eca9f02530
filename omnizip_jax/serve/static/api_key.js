// Asks for the server's API key, which is kept in the page's memory only.

import { fetchModel, retry, Unauthorized } from "./session.js";

// The model and, if the server requires one, the key; waits for a server that cannot be reached.
export async function connect(dialog, onError) {
  let key = null;
  for (;;) {
    try {
      return { key, model: await retry(() => fetchModel(key), () => false, onError) };
    } catch {
      if (key !== null) hint(dialog, "Wrong API key.");
      key = await promptForKey(dialog);
    }
  }
}

async function promptForKey(dialog) {
  const field = dialog.querySelector("input");
  dialog.oncancel = (event) => event.preventDefault();
  for (;;) {
    field.value = "";
    dialog.showModal();
    await new Promise((resolve) => (dialog.onclose = resolve));
    const key = field.value.trim();
    if (/^[\x20-\x7e]+$/.test(key)) return key;
    hint(dialog, "A key has ASCII characters only: check the keyboard layout.");
  }
}

function hint(dialog, text) {
  dialog.querySelector("#key-hint").textContent = text;
}
