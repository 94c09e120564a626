/* Before the first paint, so that the page does not flash: a stored choice beats the system's. */
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("fastsam3d.theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be off; the system's choice holds.
  }
})();
