// Colours before the first paint: the visitor's choice, else the system's. A classic script, because modules run too late for that.
(() => {
  const order = ["auto", "light", "dark"];
  const names = { auto: "Auto", light: "Light", dark: "Dark" };
  const spoken = { auto: "as the system", light: "light", dark: "dark" };

  function stored() {
    try {
      const value = localStorage.getItem("fedmap-theme");
      return order.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage may be forbidden
    }
  }

  let theme = stored();

  function show() {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.querySelector(".theme-name").textContent = names[theme];
      button.setAttribute("aria-label", `Colours: ${spoken[theme]}. Change`);
      button.dataset.value = theme;
    }
  }

  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme")?.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try {
        localStorage.setItem("fedmap-theme", theme);
      } catch {
        // the choice then lasts as long as the page
      }
      show();
    });
    const here = document.querySelector(`header.site a[data-page="${document.body.dataset.page}"]`);
    here?.setAttribute("aria-current", "page");
  });
})();
