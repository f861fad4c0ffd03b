// One person before Open WebUI, in a Chromium of their own. On stdin comes one JSON line for each thing they do,
// {does, ...}; on stdout goes one for what came of it: {result} or {error}. The end of stdin ends the browser.
//
// It knows Open WebUI's page by what a person sees of it: labels and roles, and the two ids of the page's own that have
// none.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const packages = createRequire(new URL("../../browser/node/package.json", import.meta.url));
const { chromium } = packages("playwright-core");

const { executable, url, token, seconds } = JSON.parse(process.argv[2]);
const ANSWER = ".chat-assistant";

const browser = await chromium.launch({ executablePath: executable });
const window_ = { viewport: { width: 1200, height: 560 }, deviceScaleFactor: 2 };
const signedIn = { cookies: [], origins: [{ origin: url, localStorage: [{ name: "token", value: token }] }] };
const context = await browser.newContext({ ...window_, storageState: signedIn });
context.setDefaultTimeout(seconds * 1000);
const page = await context.newPage();

const elsewhere = [];
page.on("request", (request) => {
  if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) elsewhere.push(request.url());
});

const answer = () => page.locator(ANSWER).last();
const stopButton = () => page.getByRole("button", { name: "Stop", exact: true });

// Every text that the last answer has had on the page, in order.
const keepTexts = (selector) => {
  window.answerTexts = [];
  new MutationObserver(() => {
    const text = [...document.querySelectorAll(selector)].at(-1)?.innerText.trim() ?? "";
    if (text && text !== window.answerTexts.at(-1)) window.answerTexts.push(text);
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
};

const deeds = {
  async models() {
    await page.goto(url);
    await page.getByRole("button", { name: /^Select(ed)? /, disabled: false }).first().click();
    const options = page.getByRole("option");
    await options.first().waitFor();
    return (await options.allInnerTexts()).map((text) => text.trim());
  },
  async ask({ model, prompt }) {
    await page.goto(`${url}/?models=${encodeURIComponent(model)}`);
    await page.getByRole("button", { name: `Selected model: ${model}` }).waitFor();
    await page.evaluate(keepTexts, ANSWER);
    await page.locator("#chat-input").click();
    await page.keyboard.type(prompt);
    await page.keyboard.press("Enter");
  },
  // Once the answer has so many words.
  async words({ count }) {
    const enough = ({ count }) => (window.answerTexts.at(-1) ?? "").split(/\s+/).length >= count;
    await page.waitForFunction(enough, { count });
    return await page.evaluate(() => window.answerTexts.at(-1));
  },
  // Once it has ended, well or not: then it can be asked for again.
  async ended() {
    await page.getByRole("button", { name: "Regenerate" }).last().waitFor();
    return { text: (await answer().innerText()).trim(), texts: await page.evaluate(() => window.answerTexts) };
  },
  async stop() {
    await stopButton().click();
  },
  async stopped() {
    await stopButton().waitFor({ state: "detached" });
    return (await answer().innerText()).trim();
  },
  // The chat's title in the list of chats.
  async titled({ title }) {
    await page.getByRole("button", { name: "Open Sidebar" }).first().click();
    await page.locator("#sidebar").getByText(title, { exact: true }).waitFor();
  },
  // A question that Open WebUI proposes below the answer.
  async proposed({ question }) {
    await page.getByRole("button", { name: question }).waitFor();
  },
  async screenshot({ path }) {
    await page.mouse.move(700, 420); // nothing to point at
    await page.screenshot({ path, animations: "disabled", caret: "hide" });
  },
  elsewhere: () => elsewhere,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { does, ...given } = JSON.parse(line);
  let told;
  try {
    told = { result: (await deeds[does](given)) ?? null };
  } catch (error) {
    told = { error: `${does}: ${error}` };
  }
  process.stdout.write(`${JSON.stringify(told)}\n`);
}
await browser.close();
