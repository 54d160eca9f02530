// The server's key, where it wants one; it is kept in this page's memory and nowhere else.

import { about, Refused } from "./server.js";

// What the server says about itself, and the key that it was told for.
export async function enter(dialog) {
  let key = null;
  for (;;) {
    try {
      return { key, about: await about(key) };
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (key !== null) dialog.querySelector("#key-hint").textContent = "That is not the key.";
      key = await asked(dialog);
    }
  }
}

function asked(dialog) {
  const field = dialog.querySelector("input");
  field.value = "";
  dialog.oncancel = (event) => event.preventDefault(); // nothing can be done without
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(field.value.trim());
  });
}
