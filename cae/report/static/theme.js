"use strict";
// Light, dark, or as the system has it. In the head, so that the page never shows in the wrong colours first.

const theme = {
  choices: ["light dark", "light", "dark"],
  labels: { "light dark": "as the system has them", light: "light", dark: "dark" },

  get current() {
    return document.documentElement.style.colorScheme || this.choices[0];
  },

  get dark() {
    return this.current === "dark" || (this.current === "light dark" && matchMedia("(prefers-color-scheme: dark)").matches);
  },

  use(choice) {
    document.documentElement.style.colorScheme = choice;
    try {
      localStorage.setItem("cae-theme", choice);
    } catch {
      // Some browsers keep no storage for files: the choice lasts as long as the page.
    }
    document.dispatchEvent(new Event("themechange"));
  },

  turn() {
    this.use(this.choices[(this.choices.indexOf(this.current) + 1) % this.choices.length]);
  },
};

try {
  const kept = localStorage.getItem("cae-theme");
  if (theme.choices.includes(kept)) theme.use(kept);
} catch {
  // See above.
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
