// Small comforts. Every page works without them.
const csrf = document.body.dataset.csrf;

for (const form of document.querySelectorAll("form[data-themes]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const order = ["auto", "light", "dark"];
    const button = form.querySelector("button");
    const chosen = button.value;
    document.documentElement.dataset.theme = chosen;
    document.querySelector('meta[name="color-scheme"]').content = chosen === "auto" ? "light dark" : chosen;
    document.cookie = `comgrad_theme=${chosen}; path=/; max-age=31536000; SameSite=Lax`;
    button.querySelector("span").textContent = chosen;
    button.value = order[(order.indexOf(chosen) + 1) % 3];
    document.dispatchEvent(new CustomEvent("theme"));
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    const label = button.firstChild;
    label.data = "copied";
    setTimeout(() => { label.data = "copy"; }, 1500);
  });
}

for (const field of document.querySelectorAll("[data-submit]")) field.addEventListener("change", () => field.form.requestSubmit());

for (const form of document.querySelectorAll("form[data-busy]")) {
  const button = form.querySelector("button");
  const label = button.textContent;
  form.addEventListener("submit", () => { button.textContent = form.dataset.busy; button.disabled = true; });
  addEventListener("pageshow", () => { button.textContent = label; button.disabled = false; });
}

for (const box of document.querySelectorAll(".ask textarea")) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) box.form.requestSubmit();
  });
}

const steps = document.querySelector("[data-job]");
if (steps) follow(steps, `/api/v1/jobs/${encodeURIComponent(steps.dataset.job)}?wait=10`);

async function follow(list, address) {
  const words = { done: "done", running: "now", waiting: "to come", failed: "stopped here" };
  const said = document.querySelector("[data-said]");
  for (let failures = 0; failures < 8;) {
    try {
      const answer = await fetch(address, { headers: { "X-CSRF-Token": csrf } });
      if (!answer.ok) throw new Error(answer.statusText);
      const { job } = await answer.json();
      failures = 0;
      for (const step of job.steps) {
        const item = list.querySelector(`[data-step="${CSS.escape(step.name)}"]`);
        if (!item) continue;
        item.className = step.state;
        item.querySelector("[data-state]").textContent = words[step.state] ?? step.state;
      }
      if (job.total) said.textContent = `${job.done} of ${job.total}`;
      if (job.state === "done" || job.state === "failed") return location.reload();
    } catch {
      failures += 1;
      said.textContent = "The service does not answer; trying again.";
    }
    await new Promise((wake) => setTimeout(wake, failures ? 2000 * failures : 300));
  }
  said.textContent = "The service does not answer. Load the page again to go on.";
}
