// Asks for the server's API key, which is kept in the page's memory only.

import { fetchModel, Unauthorized } from "./session.js";

// The model and, if the server requires one, the key.
export async function connect(dialog) {
  let key = null;
  for (;;) {
    try {
      return { key, model: await fetchModel(key) };
    } catch (error) {
      if (!(error instanceof Unauthorized)) throw error;
      if (key !== null) dialog.querySelector("#key-hint").textContent = "Wrong API key.";
      key = await promptForKey(dialog);
    }
  }
}

function promptForKey(dialog) {
  const field = dialog.querySelector("input");
  field.value = "";
  dialog.oncancel = (event) => event.preventDefault();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(field.value.trim());
  });
}
