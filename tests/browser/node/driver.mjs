// Drives Chromium: on stdin comes one JSON line for each thing to do, {id, does, ...}; on stdout goes one for what came
// of it, {id, result} or {id, error}. Each has a deadline of its own, in `seconds`. The end of stdin ends the browser.
//
// What a page does besides is noted from its first moment: its requests, what its console says, its errors, and what its
// Content-Security-Policy forbade.

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const POLL_MS = 20;
const FORBIDDEN = "forbidden by the policy: ";

const { executable, sandbox } = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath: executable, chromiumSandbox: sandbox });
const axe = await readFile(fileURLToPath(import.meta.resolve("axe-core/axe.min.js")), "utf8");
const pages = new Map();

// The script is put in by the browser's debugger, which no policy holds up.
const tellWhatIsForbidden = (prefix) => {
  document.addEventListener("securitypolicyviolation", (event) =>
    console.debug(`${prefix}${event.effectiveDirective} ${event.blockedURI}`),
  );
};

function note(page) {
  const noted = { requests: [], console: [], forbidden: [], errors: [], dialogs: [], loads: 0 };
  page.on("request", (request) => noted.requests.push(request.url()));
  page.on("pageerror", (error) => noted.errors.push(String(error)));
  page.on("domcontentloaded", () => (noted.loads += 1));
  page.on("dialog", (dialog) => {
    noted.dialogs.push(dialog.message());
    dialog.dismiss();
  });
  page.on("console", (message) => {
    const text = message.text();
    if (text.startsWith(FORBIDDEN)) noted.forbidden.push(text.slice(FORBIDDEN.length));
    else noted.console.push(`${message.type()}: ${text}`);
  });
  return noted;
}

async function until({ page, expression, seconds }) {
  const deadline = performance.now() + seconds * 1000;
  let last;
  while (performance.now() < deadline) {
    try {
      last = await page.evaluate(expression);
      if (last) return last;
    } catch (error) {
      last = String(error); // a page that loads itself anew has no context for a moment
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
  throw new Error(`not so within ${seconds} s, but ${JSON.stringify(last)}: ${expression}`);
}

const deeds = {
  async open({ name, url, options, seconds }) {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(seconds * 1000);
    await context.addInitScript(tellWhatIsForbidden, FORBIDDEN);
    const page = await context.newPage();
    pages.set(name, { page, noted: note(page) });
    const answer = await page.goto(url, { waitUntil: "domcontentloaded" });
    return { status: answer.status(), headers: answer.headers() };
  },
  evaluate: ({ page, expression }) => page.evaluate(expression),
  until,
  noted: ({ noted }) => noted,
  press: async ({ page, keys }) => {
    for (const key of keys) await page.keyboard.press(key);
  },
  async audit({ page, within }) {
    await page.evaluate(axe);
    const { violations, passes } = await page.evaluate((part) => globalThis.axe.run(part), within);
    return {
      passed: passes.length,
      violations: violations.flatMap(({ id, nodes }) =>
        nodes.map(({ target, failureSummary }) => `${id} at ${target.join(" ")}: ${failureSummary}`),
      ),
    };
  },
  screenshot: async ({ page, path, whole }) => {
    await page.screenshot({ path, fullPage: whole, animations: "disabled", caret: "hide" });
  },
  close: async ({ page, name }) => {
    pages.delete(name);
    await page.context().close();
  },
};

async function obey({ id, does, ...given }) {
  let told;
  try {
    told = { id, result: (await deeds[does]({ ...given, ...pages.get(given.name) })) ?? null };
  } catch (error) {
    told = { id, error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(told)}\n`);
}

process.stdout.write(`${JSON.stringify({ id: 0, result: browser.version() })}\n`);
for await (const line of createInterface({ input: process.stdin })) obey(JSON.parse(line));
await browser.close();
